"""One training step's arithmetic: frozen features, the gated UNet, the loss (Eq. 6) per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..hosts.diffusers import Condition, FlexIPHost, inject
from ..hosts.prompts import personalization
from ..images.preprocess import normalize
from ..method.adapters import FlexIPAdapter, ReferenceFeatures
from ..method.gate import spread_gamma
from .configs.parts import BRANCHES, part_of
from .frozen import Frozen
from .samples.batch import Batch


class TrainStep(nn.Module):
    """One forward of the gated UNet (Fig. 3) up to the loss; only the adapter is a submodule."""

    def __init__(self, adapter: FlexIPAdapter, frozen: Frozen, min_snr: float | None, gamma_spread: float) -> None:
        super().__init__()
        self.adapter = adapter
        # In a tuple, so that they are neither saved, averaged over devices nor put into training mode.
        self._held = (frozen, inject(frozen.unet, adapter))
        self.min_snr, self.gamma_spread = min_snr, gamma_spread

    @property
    def frozen(self) -> Frozen:
        return self._held[0]

    @property
    def host(self) -> FlexIPHost:
        return self._held[1]

    def forward(self, batch: Batch, gamma: float | None = None) -> Tensor:
        """A batch on the device to the weighted squared errors, (B,) float32.

        Args:
            gamma: of all samples, in place of each one's own (Eq. 5).

        Where the frozen networks are in bf16, everything but the loss is computed in it.
        """
        like = next(self.frozen.unet.parameters())
        if like.dtype != torch.bfloat16:
            return self._errors(batch, like.dtype, gamma)
        with torch.autocast(like.device.type, torch.bfloat16):
            return self._errors(batch, like.dtype, gamma)

    def _errors(self, batch: Batch, dtype: torch.dtype, wanted: float | None) -> Tensor:
        frozen, host = self._held
        latents = batch.latents.complete(lambda pixels: frozen.encode_latents(pixels, batch.posterior))
        cls, patches = self.features(batch)
        image = (~batch.no_image).float()
        cls, patches = cls * image[:, None], patches * image[:, None, None]
        keep = batch.keep | batch.no_image[:, None]
        features = ReferenceFeatures(cls, patches, None if bool(keep.all()) else keep)
        text = frozen.encode_text(batch.input_ids).to(torch.float32)
        noise, timesteps = batch.noise, batch.timesteps
        noisy = frozen.scheduler.add_noise(latents, noise, timesteps)
        velocity = frozen.scheduler.config.prediction_type == "v_prediction"
        target = frozen.scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        gamma = spread_gamma(self.adapter.gate(batch.variant), batch.variant, batch.gamma_drawn, self.gamma_spread)
        if wanted is not None:
            gamma = torch.full_like(gamma, wanted)
        s = personalization(self.adapter, text, cls, batch.pieces)
        condition = Condition(self.adapter.preservation(features), s, gamma)
        # It stays until the next step: gradient checkpointing runs the UNet's blocks again.
        host.condition = condition
        model_pred: Tensor = frozen.unet(noisy.to(dtype), timesteps, text.to(dtype)).sample
        error = (model_pred.float() - target).pow(2).mean((1, 2, 3))
        return error * self._weights(timesteps, velocity)

    @torch.no_grad()
    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[CLS] and patch features of the references, (B, C) and (B, M, W), float32."""
        clip, dino = self.frozen.clip, self.frozen.dino

        def seen(pixels: Tensor, encoder: Any) -> Tensor:
            return normalize(pixels, encoder.mean, encoder.std).to(next(encoder.parameters()).dtype)

        return (
            batch.cls.complete(lambda pixels: clip(seen(pixels, clip)).cls.float()),
            batch.patches.complete(lambda pixels: dino(seen(pixels, dino)).float()),
        )

    def _weights(self, timesteps: Tensor, velocity: bool) -> Tensor | float:
        """Min-SNR weights (Hang et al., 2023), or 1: the paper's loss."""
        if self.min_snr is None:
            return 1.0
        alpha: Tensor = self.frozen.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = alpha / (1 - alpha)
        return snr.clamp(max=self.min_snr) / (snr + 1 if velocity else snr)


def gradient_norms(adapter: nn.Module) -> dict[str, float]:
    """The norm of each branch's gradient."""
    squares = dict.fromkeys(BRANCHES, 0.0)
    for name, parameter in adapter.named_parameters():
        for branch, parts in BRANCHES.items():
            if part_of(name) in parts and parameter.grad is not None:
                squares[branch] += float(parameter.grad.float().pow(2).sum())
    return {branch: value**0.5 for branch, value in squares.items()}
