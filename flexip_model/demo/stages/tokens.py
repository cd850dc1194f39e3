"""Stage 3: P learns to hold the subject's look, place by place, before a UNet has to read it.

Through one linear layer the query of every place must tell the target's latent there, where the subject is, and the
subject's share. The layer is thrown away afterwards. Our choice, for want of compute: this is many times cheaper per
sample than the UNet, whose attention would otherwise wait for tokens worth reading while the tokens wait for a reader.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...method.adapters import FlexIPAdapter, ReferenceFeatures
from .cache import Cache
from .networks import ADAPTER, GRID, build_adapter
from .stage import Plan, Stage, device_of, load_averaged, train


class TokensTrainer(nn.Module):
    """Adapter and probe; only the way to P's queries gets gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = build_adapter()
        self.read = nn.Linear(ADAPTER.token_width, 5)

    def forward(self, features: ReferenceFeatures) -> tuple[Tensor, Tensor]:
        """What P says of every place: latents (n, 4, 16, 16) and mask logits (n, 16, 16)."""
        told = self.read(self.adapter.preservation(features)[:, : GRID**2])
        told = told.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
        return told[:, :4], told[:, 4]


def run_tokens(cache: Cache, plan: Plan, folder: Path) -> Stage:
    """Train P of a new adapter from references that are the target's own picture."""
    model = TokensTrainer()
    trained = ("project_retrieval", "queries", "resampler_queries")
    for name, parameter in model.adapter.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in trained)

    def step(rng: np.random.Generator) -> dict[str, Tensor]:
        drawn = cache.draw(rng, torch.zeros(plan.batch, dtype=torch.bool)).to(device_of(model))
        latents, mask = model(ReferenceFeatures(drawn.cls, drawn.patches))
        error = (latents - drawn.latents).pow(2).mean(1)
        looks = (error * drawn.mask).sum() / drawn.mask.sum()
        shape = F.binary_cross_entropy_with_logits(mask, drawn.mask)
        return {"loss": looks + shape, "looks": looks, "shape": shape}

    return train(model, step, plan, folder)


def load_tokens(folder: Path) -> FlexIPAdapter:
    """The adapter of this stage, on which the next one builds."""
    adapter = load_averaged(TokensTrainer(), folder).adapter
    assert isinstance(adapter, FlexIPAdapter)
    return adapter.requires_grad_(True)
