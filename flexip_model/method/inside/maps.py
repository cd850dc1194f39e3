"""What one attention layer shows of its tokens (Fig. 7): attention weights, and norms of contributions.

The paper shows maps of *learnable queries*, *CLS* and *text* and does not say how they are made. Our choice: the tokens
of each branch are sorted into groups, and per place of the picture a group has

- an **attention weight**: its share of the branch's own softmax, the mean over heads. Over the groups of a branch they
  add up to 1, whatever γ is. So the maps of queries and of CLS are each other's complement.
- a **contribution**: weight · Σ over the group's tokens of softmax · V, the gate's weight included (Eq. 4), before the
  layer's `to_out`. Over all groups they add up to what the layer's attention gives. Its size is the root mean square
  over the layer's width, so that layers of different widths compare; for all groups on one scale.

The first of every 77 tokens of a text, which starts it, is a group of its own, in the text and in S, which has a token
for each of the text's: softmax rests there where nothing is looked for (our choice; the paper does not speak of it).

Letters: R rows of the batch, L queries of the layer, N tokens of a branch, C the layer's width, H heads, E head width,
G groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .. import sd15
from ..adapters import Adapter

PRESERVATION, PERSONALIZATION, TEXT = "preservation", "personalization", "text"
GROUPS = {
    "queries": PRESERVATION,
    "cls": PRESERVATION,
    "s": PERSONALIZATION,
    "s_start": PERSONALIZATION,
    "text": TEXT,
    "text_start": TEXT,
}
"""The groups of tokens, each with its branch, in the order of every map's axis G."""


class Attended(NamedTuple):
    """What a branch attends to at one layer.

    Attributes:
        k, v: (R or 1, N, C).
        weight: the gate's, that broadcasts to (R, L, 1); None: 1, as the text has.
        mask: added to the logits, that broadcasts to (R, H, L, N); None for none.
    """

    k: Tensor
    v: Tensor
    weight: Tensor | None = None
    mask: Tensor | None = None

    def of_rows(self, rows: slice | int) -> Attended:
        """The same for some rows of the batch; what is one for all rows stays so."""
        rows = slice(rows, rows + 1) if isinstance(rows, int) else rows
        weight, mask = (t if t is None or len(t) == 1 else t[rows] for t in (self.weight, self.mask))
        k, v = (t if len(t) == 1 else t[rows] for t in (self.k, self.v))
        return Attended(k, v, weight, mask)


def tokens_of(branch: str, tokens: int, adapter: type[Adapter] | Adapter, per_reference: int) -> dict[str, Tensor]:
    """The groups of a branch, each with the numbers of its tokens, (n,) int64; together they are all of them.

    Args:
        tokens: N.
        adapter: its kind says how many of a reference's tokens come of the [CLS].
        per_reference: the tokens of one reference in P; with several references they follow each other.
    """
    place = torch.arange(tokens)
    if branch == PRESERVATION:
        second = place % per_reference >= per_reference - adapter.cls_tokens
    else:
        second = place % sd15.TEXT_LENGTH == 0
    names = [name for name, of in GROUPS.items() if of == branch]
    return {names[0]: place[~second], names[1]: place[second]}


def attention_weights(q: Tensor, k: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / √E): q (R, L, C), k (R, N, C), mask as `Attended.mask` → (R, H, L, N) float32."""
    q, k = (rearrange(t.float(), "b n (h e) -> b h n e", h=heads) for t in (q, k))
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights: Tensor = (logits if mask is None else logits + mask.float()).softmax(-1)
    return weights


def contribution(weights: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
    """What some tokens add to a branch's output: weights (R, H, L, N), v (R, N, C), tokens (n,) → (R, L, C) float32."""
    values = rearrange(v.float(), "b n (h e) -> b h n e", h=weights.shape[1])
    return rearrange(weights[..., tokens] @ values[:, :, tokens], "b h n e -> b n (h e)")


@torch.no_grad()
def layer_maps(
    q: Tensor, branches: dict[str, Attended], adapter: Adapter, *, heads: int, grid: tuple[int, int], largest: int
) -> Tensor:
    """The maps of one layer.

    Args:
        q: (R, L, C) the layer's projected queries.
        branches: by name, those that take part; one whose weight is 0 everywhere takes none.
        heads: attention heads of the layer.
        grid: the layer's height and width in tokens, L in all.
        largest: the most tokens that a map has each way; maps of finer layers are means over areas.

    Returns:
        (2, G, R, h, w) float32 on the CPU: attention weights, then contributions; 0 where a branch takes no part.
    """
    rows = []
    for row in range(len(q)):  # one at a time: the weights of a whole batch are large
        found = q.new_zeros(2, len(GROUPS), q.shape[1], dtype=torch.float32)
        for branch, attended in branches.items():
            k, v, weight, mask = attended.of_rows(row)
            if weight is not None and not bool((weight != 0).any()):
                continue
            weights = attention_weights(q[row : row + 1], k, heads, mask)
            groups = tokens_of(branch, k.shape[1], adapter, adapter.preservation_tokens)
            for name, tokens in groups.items():
                tokens, number = tokens.to(q.device), list(GROUPS).index(name)
                found[0, number] = weights[..., tokens].sum(-1).mean(1)[0]
                part = contribution(weights, v, tokens)
                if weight is not None:
                    part = part * weight.to(part)
                found[1, number] = part[0].square().mean(-1).sqrt()
        rows.append(found)
    maps = rearrange(torch.stack(rows, 2), "k g r (h w) -> k g r h w", h=grid[0], w=grid[1])
    size = (min(grid[0], largest), min(grid[1], largest))
    pooled = F.adaptive_avg_pool2d(maps.flatten(0, 1), size)
    return pooled.reshape(*maps.shape[:3], *size).cpu()
