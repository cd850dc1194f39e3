"""The resampler with unified input (§3.1, Eq. 1): queries X retrieve from D, keys are X ⊕ D.

Letters: B batch, N tokens of X, M tokens of D, d width, H heads, E head width, W token width.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .config import FlexIPConfig


class PerceiverAttention(nn.Module):
    """One PSA layer: softmax(Q(X) K(X ⊕ D)ᵀ / √E) V(X ⊕ D) (§3.1), pre-norm (our choice, as IP-Adapter-Plus).

    The paper writes √d; with heads that is the head's width E, as in every multi-head attention (our reading).
    X among the keys is what keeps the text tokens apart when D is a single [CLS] (§3.3, Eq. 3).
    """

    def __init__(self, width: int, heads: int, head_width: int, ops: Any = nn) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.norm_x = ops.LayerNorm(width)
        self.norm_d = ops.LayerNorm(width)
        self.to_q = ops.Linear(width, inner, bias=False)
        self.to_k = ops.Linear(width, inner, bias=False)
        self.to_v = ops.Linear(width, inner, bias=False)
        self.to_out = ops.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, d: Tensor, keep: Tensor | None = None) -> Tensor:
        """x (B, N, d), d (B, M, d), keep (B, M) bool or None (all) → (B, N, d)."""
        q, k, v, mask = self.project(x, d, keep)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        retrieved: Tensor = self.to_out(rearrange(out, "b h n e -> b n (h e)"))
        return retrieved

    def project(self, x: Tensor, d: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What the softmax is made of: queries (B, H, N, E), keys and values of X ⊕ D (B, H, N + M, E), and which keys
        may be read, (B, 1, 1, N + M) bool or None (all)."""
        x = self.norm_x(x)
        keys = torch.cat([x, self.norm_d(d)], dim=1)
        split = "b n (h e) -> b h n e"
        q, k, v = (rearrange(t, split, h=self.heads) for t in (self.to_q(x), self.to_k(keys), self.to_v(keys)))
        mask = None
        if keep is not None:
            mask = torch.cat([keep.new_ones(x.shape[:2]), keep], dim=1)[:, None, None, :]
        return q, k, v, mask


class FeedForward(nn.Module):
    """LayerNorm, widen, GELU, narrow; no biases (as IP-Adapter-Plus)."""

    def __init__(self, width: int, factor: int, ops: Any = nn) -> None:
        super().__init__()
        self.norm = ops.LayerNorm(width)
        self.widen = ops.Linear(width, width * factor, bias=False)
        self.narrow = ops.Linear(width * factor, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) → (B, N, d)."""
        out: Tensor = self.narrow(F.gelu(self.widen(self.norm(x))))
        return out


class Resampler(nn.Module):
    """Z^(R,X) = Resampler(Z^(X), Z^(D)) (§3.1, Eq. 1), then a projection to the UNet's cross-attention width."""

    def __init__(self, config: FlexIPConfig, ops: Any = nn) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": PerceiverAttention(config.width, config.heads, config.head_width, ops),
                    "feed_forward": FeedForward(config.width, config.feed_forward, ops),
                }
            )
            for _ in range(config.depth)
        )
        self.project_out = ops.Linear(config.width, config.token_width)
        self.norm_out = ops.LayerNorm(config.token_width)

    def forward(self, x: Tensor, d: Tensor, keep: Tensor | None = None) -> Tensor:
        """x (B, N, d), d (B, M, d), keep (B, M) bool or None → (B, N, W).

        `keep` marks the retrieval tokens that may be read: a subject mask drops the others.
        """
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            x = x + layer["attention"](x, d, keep)
            x = x + layer["feed_forward"](x)
        tokens: Tensor = self.norm_out(self.project_out(x))
        return tokens
