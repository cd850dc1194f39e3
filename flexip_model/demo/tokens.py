"""Stage 3: P learns to hold the subject's look and place, before a UNet has to read it.

A small decoder of 256 places asks P, by cross-attention, for the target's latents where the subject is, and for the
mask. It is thrown away afterwards. Our choice, for want of compute: this is several times cheaper per sample than the
UNet, whose attention would otherwise wait for tokens worth reading while the tokens wait for a reader.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapter import FlexIPAdapter, ReferenceFeatures
from .cache import Cache
from .loop import Plan, Progress, load_averaged, train
from .networks import ADAPTER, build_adapter, place_waves

_SIDE = 16


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x), tokens, tokens, need_weights=False)[0]
        return x + self.feed_forward(self.norms[1](x))


class Drawer(nn.Module):
    """P (n, tokens, 128) to what it says of every place: latents (n, 4, 16, 16) and mask logits (n, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        width = ADAPTER.token_width
        self.places = nn.Parameter(2 * place_waves(_SIDE, width))
        self.layers = nn.ModuleList(_Layer(width) for _ in range(2))
        self.out = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.places.expand(len(tokens), -1, -1)
        for layer in self.layers:
            x = layer(x, tokens)
        drawn = self.out(x).unflatten(1, (_SIDE, _SIDE)).permute(0, 3, 1, 2)
        return drawn[:, :4], drawn[:, 4]


class TokensTrainer(nn.Module):
    """Adapter and drawer; only the way to P gets gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = build_adapter()
        self.drawer = Drawer()


def run_tokens(cache: Cache, plan: Plan, folder: Path, batch: int = 48) -> Progress:
    """Train P from references that are the target's picture, reframed."""
    model = TokensTrainer()
    trained = ("project_retrieval", "queries", "resampler_queries", "project_cls", "resampler_cls")
    for name, parameter in model.adapter.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in trained)

    def step(rng: np.random.Generator) -> dict[str, Tensor]:
        drawn = cache.draw(rng, torch.zeros(batch, dtype=torch.bool))
        with torch.autocast("cpu", torch.bfloat16):
            p = model.adapter.preservation(ReferenceFeatures(drawn.cls, drawn.patches))
            latents, mask = (t.float() for t in model.drawer(p))
        error = (latents - drawn.latents).pow(2).mean(1)
        looks = (error * drawn.mask).sum() / drawn.mask.sum()
        shape = F.binary_cross_entropy_with_logits(mask, drawn.mask)
        return {"loss": looks + shape, "looks": looks, "shape": shape}

    return train("tokens", model, step, plan, folder)


def load_tokens(folder: Path) -> FlexIPAdapter:
    """The adapter of this stage, on which the next one builds."""
    adapter = load_averaged(TokensTrainer(), folder).adapter
    assert isinstance(adapter, FlexIPAdapter)
    return adapter.requires_grad_(True)
