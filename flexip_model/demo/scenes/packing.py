"""Composed pictures as a data folder, for the trainer: half image groups, half variant groups."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from ...data.format import NewGroup, ShardWriter
from ...data.pack.pixels import RawFrame, make_frame
from .compose import Composer, Recipe

NAME = "demo"
LICENSE = "MIT"
CAPTIONS = 3


def pack(composer: Composer, folder: Path, groups: int, seed: int = 6) -> None:
    """Write `groups` groups of a target with its captions and a reference; what was in `folder` goes away.

    The reference of an image group is the target's own picture of the subject, that of a variant group another
    picture of it (see `compose`).
    """
    shutil.rmtree(folder, ignore_errors=True)
    writer = ShardWriter(folder, NAME, LICENSE, note="composed from Fluent Emoji by flexip_model.demo")
    for number in range(groups):
        rng = np.random.default_rng((seed, number))
        recipe = composer.recipe(rng)
        variant = number % 2 == 1
        reference = (composer.variant if variant else composer.same)(recipe, rng)
        captions = tuple(composer.prompt(recipe, rng) for _ in range(CAPTIONS))
        frames = (_frame(composer, recipe, "target", captions), _frame(composer, reference, "reference", ()))
        writer.add(NewGroup(f"{NAME}-{number:06}", "multiview" if variant else "image", frames))
    writer.close()


def _frame(composer: Composer, recipe: Recipe, role: str, captions: tuple[str, ...]):
    picture, mask = composer.picture_and_mask(recipe)
    raw = RawFrame(picture, mask=mask, role=role, captions=captions, name=role)
    return make_frame(raw, composer.size)[0]
