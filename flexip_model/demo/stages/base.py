"""The text-to-image base (UNet and text encoder) and its noise: v-prediction with SD1.5's schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .networks import build_text_encoder, build_unet, noise_schedule


class Base(nn.Module):
    """The two networks that stay frozen when the adapter trains."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.unet: Any = build_unet()
        self.text: Any = build_text_encoder(vocabulary)

    def read(self, ids: Tensor) -> Tensor:
        """(n, 77) ids to Z^(T), (n, 77, 128): the final hidden states after the final norm."""
        return self.text(ids).last_hidden_state


class Noise:
    """Draws steps and noise, and mixes them into latents."""

    def __init__(self) -> None:
        self.schedule = noise_schedule()

    def __call__(self, latents: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents to (noisy latents, v, steps).

        Steps are spread over the batch (lower variance), with density (1 - t)^(-1/3): more at much noise, where
        subject and background are decided (our choice).
        """
        count = len(latents)
        spread = (np.arange(count) + rng.random(count)) / count
        steps = torch.from_numpy(((1 - rng.permutation(spread) ** 1.5) * 1000).astype(np.int64).clip(0, 999))
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
        noisy = self.schedule.add_noise(latents, noise, steps)
        return noisy, self.schedule.get_velocity(latents, noise, steps), steps
