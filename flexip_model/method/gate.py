"""The dynamic weight gate (§3.4): one γ per sample between preservation and personalization.

Letters: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..common.errors import FlexIPError
from .config import FlexIPConfig


class DynamicWeightGate(nn.Module):
    """γ(x) = α for image samples, 1 − β for video samples (§3.4, Eq. 5) and for multi-view ones (our reading).

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


def spread_gamma(gamma: Tensor, variant: Tensor, drawn: Tensor, spread: float) -> Tensor:
    """γ of training samples, spread over [0, 1] (our choice; Eq. 5 has two values only, and between them a dial has
    nothing to go by).

    With spread 1 image samples get γ with density 3γ² and variant samples with density 2(1 − γ): the higher γ, the more
    of the samples that met it had the target's own picture for a reference. The square, because likeness near 1 is the
    harder thing to learn.

    Args:
        gamma: (B, 1, 1), the gate's values (Eq. 5).
        variant: (B,) bool.
        drawn: (B,) evenly drawn from [0, 1].
        spread: from 0, the gate's values, to 1, the densities above; between them in proportion.

    Returns:
        (B, 1, 1) in [0, 1].
    """
    wide = torch.where(variant, 1 - drawn.sqrt(), drawn.pow(1 / 3))[:, None, None]
    return torch.lerp(gamma, wide.to(gamma), spread)


def gamma_tensor(gamma: float | Sequence[float] | Tensor) -> Tensor:
    """A user's γ, one or one per sample, as a float32 tensor (B, 1, 1), B = 1 for a single number.

    Raises:
        FlexIPError: empty, not finite, or outside [0, 1] (Eq. 5 keeps γ there; stronger effects are `strength`).
    """
    values = torch.as_tensor(gamma, dtype=torch.float32).reshape(-1, 1, 1)
    if values.numel() == 0 or not bool(torch.isfinite(values).all()) or values.min() < 0 or values.max() > 1:
        raise FlexIPError(f"γ is {gamma!r}; expected numbers from 0 (follow the prompt) to 1 (keep the subject)")
    return values


def weights(gamma: Tensor, strength: float | Tensor, calibration: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The weights of the two branches (§3.4, Eq. 4): strength·g for P and strength·(1 − g) for S, g the gate's γ.

    Args:
        gamma: a user's γ in [0, 1], any shape.
        strength: a factor on both (our choice), that broadcasts to γ.
        calibration: the adapter's calibration curve (`FlexIPConfig.dial`), which makes the gate's γ of the user's.

    Returns:
        Two tensors of γ's shape, broadcast with strength's.
    """
    gamma = _calibrated(gamma, calibration)
    return gamma * strength, (1 - gamma) * strength


def _calibrated(gamma: Tensor, curve: Sequence[float]) -> Tensor:
    """A user's γ → the gate's γ (our choice; see `train.calibrate`).

    The curve holds the gate's values at evenly spaced γ from 0 to 1, with straight lines between them; where it is
    empty, the two are the same, as in the paper.
    """
    if not curve:
        return gamma
    table = torch.tensor(curve, device=gamma.device, dtype=gamma.dtype)
    place = gamma * (len(curve) - 1)
    low = place.floor().clamp(0, len(curve) - 2).long()
    return torch.lerp(table[low], table[low + 1], place - low)
