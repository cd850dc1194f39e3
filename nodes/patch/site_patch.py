"""What sits in the slot of a cross-attention layer for one forward (§3.4, Eq. 4).

Letters: R rows of the model's batch, L queries of the layer, T text tokens, N tokens of a branch, C the layer's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
from torch import Tensor

from ...flexip_model.common.errors import FlexIPError
from ...flexip_model.method.attention import KeyValue, gated_attention
from ...flexip_model.method.inside.maps import PERSONALIZATION, PRESERVATION, TEXT, Attended
from ...flexip_model.method.sites import Site
from .look import Look
from .run import Step


class Rest:
    """Whether the patches of one function wrapper have to leave the work to those of the model."""

    now = False


@dataclass(eq=False, repr=False)
class SitePatch:
    """Sits in the slot of one cross-attention layer for one forward; what was there before gives the base output.

    Attributes:
        p, s: keys and values of the two branches, (R, N, C); None where not needed.
        weights: the gate's, by the layer's grid of tokens where a mask lies on it, else by None.
        rest: tells patches that were put around a function that the model's own are there.
        look: notes what the layer attends to, with the rows that are looked at and their pictures; None: nobody looks.
        acted: the branches that were added, None before.
    """

    step: Step
    site: Site
    previous: Callable | None
    p: KeyValue | None
    s: KeyValue | None
    weights: dict[tuple[int, int] | None, tuple[Tensor, Tensor]]
    rest: Rest | None = None
    look: tuple[Look, dict[int, int]] | None = None
    acted: tuple[bool, bool] | None = None

    @property
    def branches(self) -> tuple[bool, bool]:
        """Whether P and S are needed in this forward."""
        return self.p is not None, self.s is not None

    @property
    def form(self) -> tuple:
        """What it computes, but for the tensors that it reads."""
        chained = self.previous.form if isinstance(self.previous, SitePatch) else type(self.previous)
        applied = self.step.applied
        masks = applied.has_masks and (applied.strength * applied.layers[self.site.name], self.step.rows)
        return self.site.name, self.branches, masks, chained, self.look is not None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """q (R, L, C), k and v (R, T, C), projected → (R, L, C) before `to_out`."""

        def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return comfy_attention.optimized_attention(
                q,
                k,
                v,
                heads,
                attn_precision=extra_options.get("attn_precision"),
                transformer_options=extra_options,
            )

        heads = extra_options["n_heads"]
        if self.previous is not None:
            out = self.previous(q, k, v, extra_options)
        elif len(k) == len(q):
            out = attend(q, k, v, heads)
        else:
            raise FlexIPError(
                f"at {self.site.name} the model's attention has {len(q)} rows of queries and {len(k)} of keys; another "
                "node gives the layers prompts of its own (NAG does) and takes their attention over, which cannot be "
                "while FlexIP is there: remove one of them"
            )
        if self.rest is not None and self.rest.now:
            return out
        self.acted = self.branches
        grid = self._grid(q, extra_options) if self.step.applied.has_masks else None
        p, s, weights = self.p, self.s, self.weights.get(grid)
        if weights is None:
            # Deep Shrink and its like change the sizes of layers.
            weights = self.step.gate(self.site, grid)
        if len(q) != self.step.rows:
            rows = self.step.sources(q, self.site, extra_options)
            p, s = (pair and (pair[0][rows], pair[1][rows]) for pair in (p, s))
            weights = weights[0].expand(self.step.rows, -1, -1)[rows], weights[1].expand(self.step.rows, -1, -1)[rows]
        if self.look is not None:
            look, looked_at = self.look
            pairs = zip((PRESERVATION, PERSONALIZATION), (p, s), weights, strict=True)
            branches = {name: Attended(*pair, weight) for name, pair, weight in pairs if pair is not None}
            look.add(self.site, q, {**branches, TEXT: Attended(k, v)}, heads=heads, rows=looked_at)
        return gated_attention(q, out, p, s, weights=weights, heads=heads, attend=attend)

    def _grid(self, q: Tensor, extra_options: dict[str, Any]) -> tuple[int, int]:
        height, width = extra_options["activations_shape"][-2:]
        if height * width != q.shape[1]:
            raise FlexIPError(
                f"the mask cannot be fitted: the layer has {q.shape[1]} tokens for a grid of {width}×{height}; another "
                "node merges tokens, use FlexIP without a mask there"
            )
        return height, width
