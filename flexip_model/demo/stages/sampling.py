"""Pictures from the small model: DDIM with guidance, a γ per sample, on whatever device the base is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...hosts.denoise import denoise
from ...hosts.diffusers import Condition, inject
from ...method.adapters import Adapter, ReferenceFeatures
from ...method.gate import gamma_tensor
from ..scenes.words import Words
from .base import Base
from .networks import device_of, noise_schedule
from .vae import to_pictures

GUIDANCE = 3.0
"""As in the workflows, and where the dial is measured."""


@torch.no_grad()
def draw(
    base: Base,
    vae: Any,
    words: Words,
    prompts: Sequence[str],
    noise: Tensor,
    *,
    adapter: Adapter | None = None,
    condition: Callable[[Tensor], Condition] | None = None,
    steps: int = 25,
) -> Tensor:
    """One picture per prompt, (n, 3, 128, 128) about in [-1, 1], on the base's device.

    Args:
        noise: (n, 4, 16, 16).
        adapter, condition: both or none; what the adapter adds, made of the text (2n, 77, 128) of the prompts and of
            as many empty ones, which are the negative.
    """
    device, count = device_of(base), len(prompts)
    text = base.read(words([*prompts, ""]).to(device))
    text = torch.cat([text[:-1], text[-1:].expand(count, -1, -1)])
    host = None
    if adapter is not None and condition is not None:
        host = inject(base.unet, adapter)
        host.condition = condition(text)
    latents = denoise(base.unet, noise_schedule(), noise.to(device), text, steps=steps, guidance=GUIDANCE)
    if host is not None:
        host.eject()
    pixels: Tensor = vae.decode(latents / vae.config.scaling_factor).sample
    return pixels


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
    count = len(prompts)
    condition: Callable[[Tensor], Condition] | None = None
    if adapter is not None and features is not None and gammas is not None:
        cls, patches = (torch.cat([f, torch.zeros_like(f)]).to(device_of(base)) for f in features)

        def made_of(text: Tensor) -> Condition:
            p = adapter.preservation(ReferenceFeatures(cls, patches))
            return Condition(p, adapter.personalization(text, cls), gamma_tensor(list(gammas) * 2).to(text.device))

        condition = made_of

    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1 if same_noise else count, 4, 16, 16, generator=generator).expand(count, -1, -1, -1)
    drawn = draw(base, vae, words, prompts, noise, adapter=adapter, condition=condition, steps=steps)
    return to_pictures(drawn.cpu())
