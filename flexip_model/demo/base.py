"""The text-to-image base (UNet and text encoder) and its noise: ε-prediction with SD1.5's schedule."""

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

    def weights(self, steps: Tensor) -> Tensor:
        """Loss weight per step, (n,): min(1, 2 / SNR), min-SNR weighting (Hang et al., 2023) with γ = 2.

        Our choice: at little noise ε cannot be told and its error drowns what decides subject and background.
        """
        alpha = self.schedule.alphas_cumprod[steps]
        return (2 * (1 - alpha) / alpha).clamp(max=1.0)

    def __call__(self, latents: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents to (noisy latents, noise, steps); steps are spread evenly over the batch (lower variance)."""
        count = len(latents)
        spread = (np.arange(count) + rng.random(count)) / count
        steps = torch.from_numpy((rng.permutation(spread) * 1000).astype(np.int64))
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
        return self.schedule.add_noise(latents, noise, steps), noise, steps
