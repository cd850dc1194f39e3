"""The base alone: a UNet learns to draw the words, beside the frozen text encoder.

This is the paper's order: the base is a finished text-to-image model before any adapter is trained, so every adapter
can be compared on it, and γ = 0 has a prompt to follow.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..scenes.words import LENGTH as TEXT_LENGTH
from ..stages.base import Base
from ..stages.networks import TEXT_WIDTH, noise_schedule
from .pool import Pool
from .run import Run
from .stepper import Pace, Stepper, parameters

SUBJECT = 4.0
"""How much more an error counts in a cell that holds any of the subject: outlines as much as what is inside."""
MUCH = 600
"""Step of the noise from which it is much."""


class Noise:
    """Draws steps and noise on a device, and mixes them into latents."""

    def __init__(self, device: torch.device) -> None:
        self.kept = noise_schedule().alphas_cumprod.to(device)

    def __call__(self, latents: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (n, 4, s, s) to (noisy latents, v, steps).

        Steps are spread over the batch (lower variance), with density (1 - t)^(-1/3): more at much noise, where
        subject and background are decided (our choice).
        """
        count, device = len(latents), latents.device
        spread = (torch.arange(count, device=device) + torch.rand(count, device=device, generator=generator)) / count
        steps = ((1 - spread**1.5) * 1000).long().clamp(0, 999)
        noise = torch.randn(latents.shape, device=device, generator=generator)
        signal, rest = (part[steps].sqrt()[:, None, None, None] for part in (self.kept, 1 - self.kept))
        return signal * latents + rest * noise, signal * noise - rest * latents, steps


def weighted_errors(guess: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """(n,) mean squared errors of v, the subject's cells (mask (n, s, s) > 0.02) counted `SUBJECT` more."""
    weight = 1 + SUBJECT * (mask > 0.02).float()
    return ((guess.float() - target).pow(2).mean(1) * weight / weight.mean()).mean((1, 2))


def train_base(base: Base, pool: Pool, pace: Pace, work: Path, deadline: float) -> bool:
    """Train the base's UNet; False if the leg ended first."""
    device = pool.latents.device
    unet, noise = base.unet.train(), Noise(device)
    base.text.requires_grad_(False).eval()
    if device.type == "cuda":
        unet.to(memory_format=torch.channels_last)
    inputs = {
        "noisy": torch.zeros(pace.batch, 4, 16, 16, device=device),
        "target": torch.zeros(pace.batch, 4, 16, 16, device=device),
        "steps": torch.zeros(pace.batch, device=device, dtype=torch.long),
        "mask": torch.zeros(pace.batch, 16, 16, device=device),
        "text": torch.zeros(pace.batch, TEXT_LENGTH, TEXT_WIDTH, device=device),
    }

    def loss(i: dict[str, Tensor]) -> dict[str, Tensor]:
        guess = unet(i["noisy"], i["steps"], i["text"]).sample
        error = weighted_errors(guess, i["target"], i["mask"])
        much = (i["steps"] >= MUCH).float()
        return {"loss": error.mean(), "noisy": (error * much).sum() / much.sum().clamp(min=1)}

    def refill(_turn: int) -> None:
        picked = torch.randint(len(pool), (pace.batch,), device=device)
        noisy, target, steps = noise(pool.latents[picked].float())
        with torch.no_grad():
            text = base.read(pool.prompts(picked, torch.zeros_like(picked, dtype=torch.bool), TEXT_LENGTH))
        for name, value in (("noisy", noisy), ("target", target), ("steps", steps), ("text", text)):
            inputs[name].copy_(value)
        inputs["mask"].copy_(pool.mask[picked])

    stepper = Stepper(parameters(unet), loss, inputs, pace)  # type: ignore[arg-type]
    done = Run("base", work, {"base": stepper}, refill, pace=pace, deadline=deadline).go()
    if done:
        stepper.use_average()
    return done
