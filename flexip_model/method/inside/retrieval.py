"""Which patches of the reference the resamplers read (§3.1, Eq. 1; Fig. 7).

Per retrieval token: its attention weight in softmax(Q(X) K(X ⊕ D)ᵀ / √E), and the size of what it contributes, the root
mean square of weight · V through `to_out`; means over heads, tokens of X and layers (our choice, as for the picture's
maps). What is left of the weights to 1 is read from X itself.

Resampler_T has no map: its only retrieval token is the [CLS] (§3.3, Eq. 3), so S knows of the patches nothing.

Letters: B batch, N tokens of X, M retrieval tokens, H heads, E head width, d width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..adapters import Adapter, ReferenceFeatures
from ..resampler import PerceiverAttention, Resampler

RESAMPLERS = {"queries": "resampler_queries", "cls": "resampler_cls"}
"""By the group of tokens that it makes, the module of an adapter."""


class RetrievalMap(NamedTuple):
    """What one resampler reads.

    Attributes:
        weights: (B, M) in [0, 1]; at most 1 in all.
        contributions: (B, M), on one scale for all resamplers of an adapter.
    """

    weights: Tensor
    contributions: Tensor


@torch.no_grad()
def retrieval_maps(adapter: Adapter, features: ReferenceFeatures) -> dict[str, RetrievalMap]:
    """The maps of every resampler that reads the reference, by the group of tokens that it makes; float32, on the CPU.

    An adapter without resamplers (plain IP-Adapter) has none.
    """
    found: dict[str, list[RetrievalMap]] = {}
    hooks = []
    for group, name in RESAMPLERS.items():
        resampler = getattr(adapter, name, None)
        if not isinstance(resampler, Resampler):
            continue
        seen = found.setdefault(group, [])

        def look(module: Any, given: tuple[Any, ...], seen: list[RetrievalMap] = seen) -> None:
            seen.append(layer_retrieval(module, *given))

        hooks += [
            module.register_forward_pre_hook(look)
            for module in resampler.modules()
            if isinstance(module, PerceiverAttention)
        ]
    try:
        adapter.preservation(features)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        group: RetrievalMap(*(torch.stack(kind).mean(0).cpu() for kind in zip(*seen, strict=True)))
        for group, seen in found.items()
    }


def layer_retrieval(layer: PerceiverAttention, x: Tensor, d: Tensor, keep: Tensor | None = None) -> RetrievalMap:
    """What one PSA layer reads of D: x (B, N, d), d (B, M, d), keep (B, M) bool or None."""
    weights, values = read_weights(layer, x, d, keep)
    own = slice(x.shape[1], None)
    weights, values = weights[..., own], values[:, :, own]
    sizes = []
    for token in range(x.shape[1]):  # one at a time: (B, N, M, d) is large
        each = rearrange(weights[:, :, token, :, None] * values, "b h m e -> b m (h e)")
        sizes.append((each @ layer.to_out.weight.float().T).square().mean(-1).sqrt())
    return RetrievalMap(weights.mean((1, 2)), torch.stack(sizes).mean(0))


def read_weights(layer: PerceiverAttention, x: Tensor, d: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A PSA layer's softmax over X ⊕ D, (B, H, N, N + M), and its values, (B, H, N + M, E); both float32."""
    q, k, v, mask = layer.project(x, d, keep)
    logits = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(-1), v.float()


def on_grid(values: Tensor) -> Tensor:
    """Values of retrieval tokens on the reference's grid of patches: (B, M) → (B, √M, √M).

    Where CLIP's hidden states are the retrieval tokens (IP-Adapter-Plus), their first is the [CLS], which has no place.
    """
    side = int(values.shape[1] ** 0.5)
    return values[:, values.shape[1] - side**2 :].reshape(len(values), side, side)


def on_grids(found: Mapping[str, RetrievalMap]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Attention weights and contributions of `retrieval_maps` by group, each (B, √M, √M)."""
    return (
        {group: on_grid(maps.weights) for group, maps in found.items()},
        {group: on_grid(maps.contributions) for group, maps in found.items()},
    )
