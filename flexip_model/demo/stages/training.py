"""Stage 4: base and adapter together.

Our choice, for want of compute: the base learns in a short time only what its data ask of it, and a text-to-image task
with a few hundred names never asks it to draw an unknown shape. So in stage 4 a quarter of every batch is plain
text-to-image without the adapter, and the others run through the adapter, which trains along. The base stays a
text-to-image model of its own: without the adapter it draws from text alone. After this stage it is frozen, as in the
paper, and the adapter goes on in the trainer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...hosts.diffusers import Condition, FlexIPHost, inject
from ...method.adapters import FlexIPAdapter, ReferenceFeatures
from ...method.gate import spread_gamma
from ...train.configs.options import ConditioningDropout
from ..scenes.compose import Composer
from ..scenes.words import Words
from .base import Base, Noise
from .cache import Cache
from .networks import build_adapter
from .stage import Plan, Stage, device_of, load_averaged, train

_ALONE = 4
"""One sample in so many of stage 4 is plain text-to-image."""
_SUBJECT = 4.0
"""How much more an error counts in a cell that holds any of the subject: outlines as much as what is inside."""
GAMMA_SPREAD = 1.0
"""The trainer's `gamma_spread`, as in the config `demo`."""


class Together(nn.Module):
    """Base and adapter, both trained."""

    def __init__(self, vocabulary: int, adapter: FlexIPAdapter | None = None) -> None:
        super().__init__()
        self.base = Base(vocabulary)
        self.adapter = adapter or build_adapter()

    def copy_text_attention(self) -> None:
        """Begin the branches' keys and values as copies of the base's text attention (as IP-Adapter begins)."""
        self.adapter.copy_text_attention(self.base.unet)


class Source:
    """Batches from the cache."""

    def __init__(self, composer: Composer, cache: Cache, words: Words) -> None:
        self.composer, self.cache, self.words = composer, cache, words
        self.noise = Noise()

    def losses(
        self,
        base: Base,
        adapter: FlexIPAdapter,
        host: FlexIPHost,
        rng: np.random.Generator,
        *,
        batch: int,
        alone: int = 0,
    ) -> dict[str, Tensor]:
        """Mean squared errors of v per kind of sample, and "loss", their mean over all.

        The first `alone` samples are plain text-to-image ("text"; a tenth of their prompts is empty): their tokens
        P and S are zero, and so, the projections having no bias, is what the branches add. Of the others every second
        is of the image kind (γ about α), every second of the variant kind (γ about 1 - β), Eq. 5.
        """
        device = device_of(base)
        variant = torch.arange(batch) % 2 == 1
        drawn = self.cache.draw(rng, variant)
        noisy, target, steps = (t.to(device) for t in self.noise(drawn.latents, rng))
        drawn, variant = drawn.to(device), variant.to(device)
        no_image, no_text = ConditioningDropout().drop(rng.random(batch))
        image = torch.from_numpy(~no_image).float().to(device)
        cls, patches = (drawn.cls * image[:, None])[alone:], (drawn.patches * image[:, None, None])[alone:]
        drawn_gamma = torch.from_numpy(rng.random(batch)).float().to(device)
        gamma = spread_gamma(adapter.gate(variant), variant, drawn_gamma, GAMMA_SPREAD)
        prompts = ["" if gone else self.composer.prompt(r, rng) for r, gone in zip(drawn.recipes, no_text, strict=True)]
        text = base.read(self.words(prompts).to(device))
        p = adapter.preservation(ReferenceFeatures(cls, patches))
        s = adapter.personalization(text[alone:], cls)
        p, s = (torch.cat([t.new_zeros(alone, *t.shape[1:]), t]) for t in (p, s))
        host.condition = Condition(p, s, gamma)
        guess = base.unet(noisy, steps, text).sample
        host.condition = None
        weight = 1 + _SUBJECT * (drawn.mask > 0.02).float()
        error = ((guess - target).pow(2).mean(1) * weight / weight.mean()).mean((1, 2))
        kinds = {
            "loss": error.mean(),
            "image": error[alone:][~variant[alone:]].mean(),
            "variant": error[alone:][variant[alone:]].mean(),
        }
        return kinds | ({"text": error[:alone].mean()} if alone else {})


def run_together(source: Source, model: Together, plan: Plan, folder: Path) -> Stage:
    """Stage 4."""
    host = inject(model.base.unet, model.adapter)
    alone = plan.batch // _ALONE

    def step(rng: np.random.Generator) -> dict[str, Tensor]:
        return source.losses(model.base, model.adapter, host, rng, batch=plan.batch, alone=alone)

    stage = train(model, step, plan, folder)
    host.eject()
    return stage


def load_together(words: Words, folder: Path) -> Together:
    return load_averaged(Together(len(words.tokenizer)), folder)  # type: ignore[return-value]
