"""Pictures from the demo model while it trains: DDIM with guidance, a γ per sample."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...hosts.denoise import denoise
from ...hosts.diffusers import Condition, inject
from ...method.adapters import Adapter, ReferenceFeatures
from ...method.gate import gamma_tensor
from ..scenes.words import Words
from .base import Base
from .networks import noise_schedule
from .stage import device_of
from .vae import to_pictures

GUIDANCE = 3.0
"""As in the workflows, and where the dial is measured."""


@torch.no_grad()
def sample(
    base: Base,
    vae: Any,
    words: Words,
    prompts: Sequence[str],
    *,
    adapter: Adapter | None = None,
    features: tuple[Tensor, Tensor] | None = None,
    gammas: Sequence[float] | None = None,
    seed: int = 0,
    steps: int = 25,
    same_noise: bool = False,
) -> list[Image.Image]:
    """One 128 px picture per prompt; the negative has the empty prompt, the null CLS and null features.

    Args:
        adapter, features, gammas: all three or none; features are CLS (n, 128) and patches (n, 256, 128).
        same_noise: every picture begins from the same noise, as a γ sweep needs.
    """
    count, device = len(prompts), device_of(base)
    text = base.read(words(list(prompts) + [""] * count).to(device))
    host = None
    if adapter is not None and features is not None and gammas is not None:
        host = inject(base.unet, adapter)
        cls, patches = (torch.cat([f, torch.zeros_like(f)]).to(device) for f in features)
        p = adapter.preservation(ReferenceFeatures(cls, patches))
        host.condition = Condition(p, adapter.personalization(text, cls), gamma_tensor(list(gammas) * 2).to(device))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1 if same_noise else count, 4, 16, 16, generator=generator).expand(count, -1, -1, -1)
    latents = denoise(base.unet, noise_schedule(), noise.to(device), text, steps=steps, guidance=GUIDANCE)
    if host is not None:
        host.eject()
    return to_pictures(vae.decode(latents / vae.config.scaling_factor).sample.cpu())


def mean_step(pictures: Sequence[Image.Image]) -> list[float]:
    """Mean absolute pixel difference (0 to 1) between neighbors of a sweep."""
    values = [np.asarray(p, np.float32) / 255 for p in pictures]
    return [float(np.abs(a - b).mean()) for a, b in pairwise(values)]
