"""A small data folder of drawn subjects, and runs on the model that ships."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from flexip_model.data.format import NewFrame, NewGroup, ShardWriter
from flexip_model.demo.scenes.compose import Composer
from flexip_model.train.configs.options import TrainConfig
from flexip_model.train.configs.read import load_config
from flexip_model.train.samples.batch import Movable
from flexip_model.train.shared import state
from flexip_model.train.trainer import Trainer

from .demo_shapes import shapes

SMALL = {
    "size": 64,
    "batch": 4,
    "precision": "fp32",
    "adapter": {"width": 32, "depth": 1, "heads": 2, "head_width": 16, "queries": 4},
    "start": None,
    "preview_every": 0,
    "validation": {"every": 0},
    "log_every": 1,
    "save_every": 100,
    "stages": [{"steps": 4}],
    "warmup": 0,
    "lr": 1e-3,
    "schedule": "constant",
}
"""Changes to the config `demo` that make a step cheap."""


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def pack(
    folder: Path,
    images: int = 7,
    variants: int = 5,
    broken: int = 0,
    quality: str = "base",
    name: str = "drawn",
    captions: Sequence[str] = (),
    captioned: int | None = None,
    shared: bool = False,
    split: str = "train",
) -> Path:
    """Write `images` groups of one frame and `variants` groups of three; the pictures of the last
    `broken` of either are cut short. Only the first `captioned` groups have captions; `shared`: one for all frames;
    `captions`: these in turn."""
    composer = Composer(shapes(), scene_variants=2)
    writer = ShardWriter(folder, name, "CC0", note="drawn for a test", max_bytes=1 << 16)
    for number in range(images + variants):
        rng = np.random.default_rng((len(name), number))
        recipe = composer.recipe(rng)
        image = number < images
        recipes = [recipe] if image else [recipe, composer.variant(recipe, rng), composer.variant(recipe, rng)]
        frames = []
        prompt = composer.prompt(recipe, rng)
        spoiled = (number >= images - broken) if image else (number >= images + variants - broken)
        for drawn in recipes:
            picture, mask = composer.picture_and_mask(drawn)
            content = png(picture)[:200] if spoiled else png(picture)
            text = prompt if shared else composer.prompt(drawn, rng)
            text = captions[number % len(captions)] if captions else text
            frames.append(
                NewFrame(
                    content,
                    *picture.size,
                    1.0,
                    f"{number:016x}",
                    mask=png(mask),
                    captions=(text,) if captioned is None or number < captioned else (),
                )
            )
        writer.add(
            NewGroup(f"{name}-{number:04}", "image" if image else "video", tuple(frames), split, quality=quality)
        )
    writer.close()
    return folder


def config(folder: Path, output: Path, **changes: Any) -> TrainConfig:
    """The config `demo`, made small."""
    return load_config("demo", {**SMALL, "data": [str(folder)], "output": str(output), **changes})


def train(folder: Path, output: Path, **changes: Any) -> Trainer:
    """A run to its end."""
    trainer = Trainer(config(folder, output, **changes))
    trainer.run()
    return trainer


def tensors(output: Path, step: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by part and key."""
    found = state.load(output / "checkpoints", step)
    return {f"{part}.{key}": value for part, held in found.parts.items() for key, value in held.items()}


def tensors_of(batch: Movable) -> dict[str, Tensor]:
    """Every tensor of a batch, or of a part of one, by the names that lead to it."""
    found: dict[str, Tensor] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Movable):
            found |= {f"{field.name}.{name}": tensor for name, tensor in tensors_of(value).items()}
        elif isinstance(value, Tensor):
            found[field.name] = value
    return found
