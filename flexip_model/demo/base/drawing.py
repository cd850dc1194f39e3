"""The base alone: a UNet learns to draw the words, from cached latents, beside the frozen text encoder.

This is the paper's order: the base is a finished text-to-image model before any adapter is trained, so every adapter
can be compared on it, and γ = 0 has a prompt to follow.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...images.contact_sheet import draw_cells
from ..scenes.words import Words
from ..stages.base import Base, Noise
from ..stages.cache import Cache
from ..stages.sampling import sample
from ..stages.stage import Plan, Stage, device_of, load_averaged
from .lessons import Lessons

SUBJECT = 4.0
"""How much more an error counts in a cell that holds any of the subject: outlines as much as what is inside."""
MUCH = 600
"""Step of the noise from which it is much."""
LOOK_EVERY = 1250
"""Steps between two sheets of pictures."""
LOOK_STEPS = 10
LOOKS = (
    "a 3d render of a dog on a plain blue background",
    "a 3d render of a fox in the snow",
    "a 3d render of a hamburger on a plain white background",
    "a 3d render of a rocket in a night sky with stars",
    "a 3d render of a cactus in the desert",
    "a 3d render of a robot in a city",
    "a 3d render of a car on a plain yellow background",
    "a 3d render of a butterfly in a green meadow",
    "a cartoon of a cat on a plain green background",
    "a cartoon of a penguin in the snow",
    "a flat icon of a strawberry on a plain white background",
    "a flat icon of a tree on a plain orange background",
    "a 3d render of a tomato on a plain white background",
    "a 3d render of a turtle on a beach",
    "a 3d render of a house in a green meadow",
    "a 3d render of a wolf on a plain purple background",
)
"""Prompts of the sheets; the last four ask for renderings that the base has never seen."""


class Drawing(Stage):
    """The stage of the base, which tells its speed and saves sheets of pictures beside its checkpoints.

    Args:
        base: its UNet is trained, its text encoder is frozen.
        vae: decodes the sheets.
    """

    def __init__(
        self, base: Base, vae: Any, *, lessons: Lessons, cache: Cache, words: Words, plan: Plan, folder: Path
    ) -> None:
        self.base, self.vae, self.words = base, vae, words
        self.lessons, self.cache, self.noise, self.batch = lessons, cache, Noise(), plan.batch
        base.text.requires_grad_(False).eval()
        super().__init__(base.unet, self._losses, plan, folder)
        self._since = (time.monotonic(), 0)

    def _losses(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """The mean squared error of v over a batch ("loss"), and the same where noise is much ("noisy"): there the
        word decides."""
        device = device_of(self.base.unet)
        picked = torch.from_numpy(rng.integers(len(self.cache), size=self.batch))
        latents = self.cache.tensors["latents"][picked].float()
        noisy, target, steps = (t.to(device) for t in self.noise(latents, rng))
        prompts = [self.lessons.lesson(self.cache.recipes[i], rng) for i in picked.tolist()]
        with torch.no_grad():
            text = self.base.read(self.words(prompts).to(device))
        guess = self.base.unet(noisy, steps, text).sample
        mask = self.cache.tensors["mask"][picked].to(device).float() / 255
        weight = 1 + SUBJECT * (mask > 0.02).float()
        error = ((guess - target).pow(2).mean(1) * weight / weight.mean()).mean((1, 2))
        much = (steps >= MUCH).float()
        return {"loss": error.mean(), "noisy": (error * much).sum() / much.sum().clamp(min=1)}

    def log(self) -> None:
        (then, begun), now = self._since, time.monotonic()
        if self.step > begun:
            speed = (self.step - begun) * self.batch * self.world_size / (now - then)
            self.say(f"{speed:.1f} samples/s")
        self._since = now, self.step
        super().log()

    def stepped(self) -> None:
        if self.is_main_process and (self.step % LOOK_EVERY == 0 or self.step == self.pace.steps):
            (self.folder / "looks").mkdir(parents=True, exist_ok=True)
            self.sheet().save(self.folder / "looks" / f"step-{self.step:07}.png")

    def sheet(self) -> Any:
        """`LOOKS` drawn with the averaged weights, eight a row; the noises are always the same."""
        with self.ema_weights():
            pictures = sample(self.base, self.vae, self.words, LOOKS, steps=LOOK_STEPS)
        return draw_cells([("", picture) for picture in pictures], 8)

    def restore(self, found: Any) -> None:
        super().restore(found)
        self._since = time.monotonic(), self.step


def new_base(words: Words, text: Any) -> Base:
    """A base with a new UNet and a text encoder that is made."""
    base = Base(len(words.tokenizer))
    base.text = text
    return base


def run_base(stage: Drawing) -> Drawing:
    """Train to the end; on return the base holds the averaged weights, in eval mode."""
    stage.run()
    stage.ema.copy_to(stage.trained.parameters())
    stage.trained.eval()
    return stage


def load_base(words: Words, text: Any, folder: Path) -> Base:
    """The base that the stage made, frozen."""
    base = new_base(words, text)
    load_averaged(base.unet, folder)
    return base.eval().requires_grad_(False)
