"""Stages 3 and 4: base and adapter together, then the adapter alone beside the frozen base.

Our choice, for want of compute: the base learns in a short time only what its data ask of it, and a text-to-image task
with a few hundred names never asks it to draw an unknown shape. So in stage 3 a fifth of every batch is plain
text-to-image without the adapter, and the others run through the adapter, which trains along. The base stays a
text-to-image model of its own: without the adapter it draws from text alone. In stage 4 it is frozen, as in the paper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapter import FlexIPAdapter, ReferenceFeatures
from ..hosts.diffusers import Condition, FlexIPHost, inject
from ..sites import SD15_SITES
from .base import Base, Noise
from .cache import LatentCache
from .compose import Composer, Recipe
from .encoders import Features
from .loop import Plan, Progress, load_averaged, train
from .networks import ADAPTER
from .vae import to_pixels
from .words import Words

DROP = 0.05
"""Share of samples without image, without text, and without both: three exclusive cases (App. B.1)."""


def build_adapter(base: Base) -> FlexIPAdapter:
    """A new adapter whose keys and values begin as copies of the base's text attention (as IP-Adapter begins)."""
    adapter = FlexIPAdapter(ADAPTER)
    with torch.no_grad():
        for site in SD15_SITES:
            own: Any = base.unet.get_submodule(site.diffusers)
            branches = adapter.site(site)
            for branch in (branches.preservation, branches.personalization):
                assert branch is not None
                branch.to_k.weight.copy_(own.to_k.weight)
                branch.to_v.weight.copy_(0.3 * own.to_v.weight)
    return adapter


_ALONE = 5
"""One sample in so many of stage 3 is plain text-to-image."""


class Together(nn.Module):
    """Base and adapter, both trained."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.base = Base(vocabulary)
        self.adapter = build_adapter(self.base)


class Source:
    """Batches for both stages from cached latents; references are composed and encoded anew each time."""

    def __init__(self, composer: Composer, cache: LatentCache, words: Words, features: Features) -> None:
        self.composer, self.cache, self.words, self.features = composer, cache, words, features
        self.noise = Noise()

    def references(self, recipes: list[Recipe], variant: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """CLS and patches of a reference per recipe: another picture of the subject where ``variant`` is true,
        else the same one reframed."""
        drawn = [(self.composer.variant if v else self.composer.reframed)(r, rng)
                 for r, v in zip(recipes, variant.tolist(), strict=True)]
        return self.features(to_pixels([self.composer.picture(r) for r in drawn]))

    def losses(self, base: Base, adapter: FlexIPAdapter, host: FlexIPHost, rng: np.random.Generator, batch: int,
               alone: int = 0) -> dict[str, Tensor]:
        """Mean squared errors of ε per kind of sample, and "loss", their weighted mean over all.

        The first ``alone`` samples are plain text-to-image ("text"; a tenth of their prompts is empty): their tokens
        P and S are zero, and so, the projections having no bias, is what the branches add. Of the others every second
        is of the image kind (γ = α), every second of the variant kind (γ = 1 - β), Eq. 5.
        """
        recipes, latents = self.cache.draw(rng, batch)
        variant = torch.arange(batch - alone) % 2 == 1
        cls, patches = self.references(recipes[alone:], variant, rng)
        case = rng.random(batch)
        no_image = (case < DROP) | ((case >= 2 * DROP) & (case < 3 * DROP))
        no_text = (case >= DROP) & (case < 3 * DROP)
        image = torch.from_numpy(~no_image[alone:]).float()
        cls, patches = cls * image[:, None], patches * image[:, None, None]
        prompts = ["" if gone else self.composer.prompt(r, rng) for r, gone in zip(recipes, no_text, strict=True)]
        noisy, noise, steps = self.noise(latents, rng)
        with torch.autocast("cpu", torch.bfloat16):
            text = base.read(self.words(prompts))
            p = adapter.preservation(ReferenceFeatures(cls, patches))
            s = adapter.personalization(text[alone:], cls)
            p, s = (torch.cat([t.new_zeros(alone, *t.shape[1:]), t]) for t in (p, s))
            gamma = adapter.gate(variant)
            host.condition = Condition(p, s, torch.cat([gamma.new_zeros(alone, 1, 1), gamma]))
            guess = base.unet(noisy, steps, text).sample
        host.condition = None
        error = (guess.float() - noise).pow(2).mean((1, 2, 3))
        kinds = {"loss": (self.noise.weights(steps) * error).mean(), "image": error[alone:][~variant].mean(),
                 "variant": error[alone:][variant].mean()}
        return kinds | ({"text": error[:alone].mean()} if alone else {})


def run_together(source: Source, text: nn.Module | None, plan: Plan, folder: Path, batch: int = 15) -> Progress:
    """Stage 3; ``text`` is the contrastive stage's text encoder to begin from."""
    model = Together(len(source.words.tokenizer))
    if text is not None:
        model.base.text.load_state_dict(text.state_dict())
    host = inject(model.base.unet, model.adapter)
    alone = batch // _ALONE

    def step(rng: np.random.Generator) -> dict[str, Tensor]:
        return source.losses(model.base, model.adapter, host, rng, batch, alone)

    progress = train("together", model, step, plan, folder)
    host.eject()
    return progress


def run_adapter(source: Source, together: Together, plan: Plan, folder: Path, batch: int = 16) -> Progress:
    """Stage 4: the adapter goes on alone; ``together.base`` is frozen."""
    together.base.requires_grad_(False).eval()
    together.adapter.requires_grad_(True)
    host = inject(together.base.unet, together.adapter)

    def step(rng: np.random.Generator) -> dict[str, Tensor]:
        return source.losses(together.base, together.adapter, host, rng, batch)

    progress = train("adapter", together.adapter, step, plan, folder)
    host.eject()
    return progress


def load_together(words: Words, folder: Path) -> Together:
    return load_averaged(Together(len(words.tokenizer)), folder)  # type: ignore[return-value]


def load_adapter(folder: Path) -> FlexIPAdapter:
    """The adapter of stage 4, frozen."""
    return load_averaged(FlexIPAdapter(ADAPTER), folder)  # type: ignore[return-value]
