"""The dynamic weight gate (§3.4): one γ per sample between preservation and personalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .config import FlexIPConfig
from .errors import FlexIPError


class DynamicWeightGate(nn.Module):
    """γ(x) = α for image samples, 1 − β for video and multi-view samples (Eq. 5).

    α and β are constants of the config, or trained through a sigmoid where `learnable_gate` is set (the paper calls
    them "parameters initialized" towards 1 and gives no values).
    """

    constants: Tensor

    def __init__(self, config: FlexIPConfig) -> None:
        super().__init__()
        start = torch.tensor([config.alpha, config.beta])
        if config.learnable_gate:
            self.logits = nn.Parameter(torch.logit(start, eps=1e-4))
        else:
            self.register_buffer("constants", start, persistent=False)

    def alpha_beta(self) -> Tensor:
        """(2,): α and β, each in [0, 1]."""
        return torch.sigmoid(self.logits) if hasattr(self, "logits") else self.constants

    def forward(self, variant: Tensor) -> Tensor:
        """variant (B,) bool, true for video and multi-view samples → γ (B, 1, 1) float."""
        alpha, beta = self.alpha_beta()
        return torch.where(variant, 1 - beta, alpha)[:, None, None]


def gamma_tensor(gamma: float | Sequence[float] | Tensor) -> Tensor:
    """A user's γ, one or one per sample, as a float32 tensor (B, 1, 1), B = 1 for a single number.

    Raises:
        FlexIPError: empty, not finite, or outside [0, 1] (Eq. 5 keeps γ there; stronger effects are `strength`).
    """
    values = torch.as_tensor(gamma, dtype=torch.float32).reshape(-1, 1, 1)
    if values.numel() == 0 or not bool(torch.isfinite(values).all()) or values.min() < 0 or values.max() > 1:
        raise FlexIPError(f"γ is {gamma!r}; expected numbers from 0 (follow the prompt) to 1 (keep the subject)")
    return values


def gate_weights(gamma: Tensor, strength: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Weights of the two branches in Eq. 4: strength·γ for P and strength·(1 − γ) for S, shapes as γ's."""
    return gamma * strength, (1 - gamma) * strength
