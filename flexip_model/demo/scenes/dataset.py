"""Drawn scenes as a data folder, for trying the trainer on more than a handful of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...data.format import NewFrame, NewGroup, ShardWriter
from ...data.pack.pixels import RawFrame, make_frame
from .compose import Composer, Recipe
from .sources import PACKAGES

FRAMES = 3
"""Frames of a variant group."""
VALIDATION = 48
"""Groups of either kind that are kept for the validation loss."""


def write_dataset(composer: Composer, folder: Path, groups: int, seed: int = 0) -> None:
    """Write `groups` groups of one frame and as many of `FRAMES` frames of one subject, and `VALIDATION` of either
    beside them in the split `val`; each frame with its mask and a true caption.

    Raises:
        FlexIPError: the folder has such a dataset, or cannot be written.
    """
    licenses = sorted({package.license for package in PACKAGES})
    writer = ShardWriter(folder, "scenes", " AND ".join(licenses), note="drawn by demo-model scenes")
    for number in range(2 * (groups + VALIDATION)):
        rng = np.random.default_rng((seed, 17, number))
        recipe = composer.recipe(rng)
        kind = ("image", "multiview")[number % 2]
        others = [composer.variant(recipe, rng) for _ in range(FRAMES - 1)] if number % 2 else []
        frames = tuple(_frame(composer, each, rng) for each in (recipe, *others))
        split = "val" if number < 2 * VALIDATION else "train"
        writer.add(NewGroup(f"scenes-{number:06}", kind, frames, split))
    writer.close()


def _frame(composer: Composer, recipe: Recipe, rng: np.random.Generator) -> NewFrame:
    picture, mask = composer.picture_and_mask(recipe)
    return make_frame(RawFrame(picture, mask, captions=(composer.prompt(recipe, rng),)), composer.size).frame
