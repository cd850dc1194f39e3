"""Gated attention (§3.4, Eq. 4) on the outputs of the branches, shared by both hosts.

A_text + strength · (γ · A_P + (1 − γ) · A_S): each branch has its own softmax over its own keys and values. P and S
differ in token count, so the sum in Eq. 4 is read on attention outputs; weighting the tokens instead would change the
softmax's logits and make γ anything but linear (our choice).

Letters: B batch, L queries of the layer, N keys of a branch, C the layer's width, H heads, E head width, W token width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

KeyValue = tuple[Tensor, Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention: q (B, L, C), k and v (B, N, C) → (B, L, C); C = H · E."""
    q, k, v = (rearrange(t, "b n (h e) -> b h n e", h=heads) for t in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n e -> b n (h e)")


def gated_attention(
    q: Tensor,
    text: Tensor,
    preservation: KeyValue | None,
    personalization: KeyValue | None,
    *,
    weights: tuple[Tensor, Tensor],
    heads: int,
    attend: Attend = attend,
) -> Tensor:
    """Add the gated branches to the text attention's output (§3.4, Eq. 4).

    Args:
        q: (B, L, C) the layer's projected queries.
        text: (B, L, C) A_text, the frozen model's attention output before `to_out`.
        preservation, personalization: keys and values (B, N, C) of P and of S; None leaves that branch out.
        weights: of P and of S, as the gate gives them (`gate.weights`), any shape that broadcasts to (B, L, C).
        heads: attention heads of the layer.
        attend: the host's attention function.

    Returns:
        (B, L, C) in q's dtype.
    """
    for pair, weight in zip((preservation, personalization), weights, strict=True):
        if pair is not None:
            text = torch.addcmul(text, attend(q, *pair, heads), weight.to(device=q.device, dtype=q.dtype))
    return text


class Branch(nn.Module):
    """`to_k` and `to_v` of one branch at one site; bias-free as the UNet's own."""

    def __init__(self, token_width: int, channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.to_k = ops.Linear(token_width, channels, bias=False)
        self.to_v = ops.Linear(token_width, channels, bias=False)

    def forward(self, tokens: Tensor) -> KeyValue:
        """tokens (B, N, W) → keys and values (B, N, C)."""
        return self.to_k(tokens), self.to_v(tokens)
