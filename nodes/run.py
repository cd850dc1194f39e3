"""What the patch knows while sampling: projected keys and values of a run, the gate's weights of a step.

Both live in the options that ComfyUI passes along for one run and drops after it, interrupted or not, so patches
themselves never change.

Letters: R rows of the model's batch (conds × pictures), B pictures, N tokens, L query tokens, C width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..flexip_model.attention import KeyValue
from ..flexip_model.errors import FlexIPError
from ..flexip_model.gate import gamma_tensor, gate_weights, turn
from ..flexip_model.sites import Site
from .host import window_frames
from .schedule import gamma_at

if TYPE_CHECKING:
    from .patch import Applied

TABLE = 256


class Run:
    """One sampling run: the schedule that it follows, and what is worth keeping from step to step."""

    def __init__(self, sampling: Any) -> None:
        self.sampling = sampling
        self._projected: dict[tuple, dict[tuple, KeyValue]] = {}
        self._weights: dict[int, dict[tuple, tuple[Tensor, Tensor]]] = {}
        self._sigmas: list[float] | None = None
        self._ranges: dict[tuple[float, float], tuple[float, float]] = {}

    def projected(self, *tokens: Any) -> dict[tuple, KeyValue]:
        """Keys and values of these tokens, by site and branch."""
        return self._projected.setdefault(tokens, {})

    def weights(self, applied: Applied) -> dict[tuple, tuple[Tensor, Tensor]]:
        """The gate's weights of an applied adapter, by layer."""
        return self._weights.setdefault(id(applied), {})

    def active(self, start: float, end: float, sigma: float) -> bool:
        """Whether a step lies in [start, end) of the sampling; 1 as the end takes in the last step.

        By sigma, as ComfyUI's own ranges; half open, so that neighbouring ranges never share a step.
        """
        if (start, end) not in self._ranges:
            bounds = (self.sampling.percent_to_sigma(start), self.sampling.percent_to_sigma(end))
            self._ranges[start, end] = (float(bounds[0]), float(bounds[1]))
        first, last = self._ranges[start, end]
        return sigma <= first and (sigma > last or end >= 1)

    def position(self, sigma: float) -> float:
        """How far the sampling is at this sigma, in [0, 1]: the inverse of `percent_to_sigma`."""
        if self._sigmas is None:
            self._sigmas = [float(self.sampling.percent_to_sigma(i / TABLE)) for i in range(TABLE + 1)]
        low, high = 0, TABLE
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._sigmas[middle] >= sigma else (low, middle)
        above, below = self._sigmas[low], self._sigmas[high]
        if low == 0 or above <= below:
            return low / TABLE
        share = min(max((above - sigma) / (above - below), 0.0), 1.0)
        return (low + share) / TABLE


class Step:
    """One forward of the model for one applied adapter: tokens of the batch, and its gate.

    Made outside of the network, which may be compiled: names, numbers out of tensors and the places where things are
    kept are looked up here, so that none of it breaks the graph or is compiled anew.
    """

    def __init__(
        self, applied: Applied, run: Run, p: Tensor, s: Tensor | None, ids: list[Any], options: dict[str, Any]
    ) -> None:
        self.applied, self.p, self.s = applied, p, s
        self.rows = p.shape[0]
        self.pictures = self.rows // len(ids)
        self.frames = window_frames(options)
        self.gamma = applied.gamma
        if applied.curve is not None:
            self.gamma = gamma_tensor(gamma_at(applied.curve, run.position(float(options["sigmas"][0]))))
        self.weights: dict[tuple, tuple[Tensor, Tensor]] = run.weights(applied) if applied.curve is None else {}
        base = (applied.loaded.tag, self.pictures, self.frames)
        self.whole = run.projected(*base, *ids)
        self.pieces = [run.projected(*base, one) for one in ids]
        # A branch whose weight is zero everywhere costs nothing.
        self.has_p = bool((self.gamma > 0).any())
        self.has_s = s is not None and (applied.gamma_map is not None or bool((self.gamma < 1).any()))

    def key_values(self, site: Site, like: Tensor) -> tuple[KeyValue | None, KeyValue | None]:
        """Keys and values of P and of S at a site, (R, N, C) in `like`'s dtype and device; None where not needed."""
        return (
            self._project(site, "preservation", self.p, like) if self.has_p and self.p is not None else None,
            self._project(site, "personalization", self.s, like) if self.has_s and self.s is not None else None,
        )

    def _project(self, site: Site, branch: str, tokens: Tensor, like: Tensor) -> KeyValue:
        key = (site.name, branch, like.dtype, like.device, tokens.shape[1])
        if key not in self.whole:
            if all(key in piece for piece in self.pieces):
                k, v = (torch.cat([piece[key][i] for piece in self.pieces]) for i in (0, 1))
            else:
                k, v = getattr(self.applied.loaded.adapter.site(site), branch)(tokens.to(like))
                parts = zip(k.split(self.pictures), v.split(self.pictures), strict=True)
                for piece, part in zip(self.pieces, parts, strict=True):
                    piece[key] = part
            self.whole[key] = (k, v)
        return self.whole[key]

    def gate(self, site: Site, like: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The weights of P and S at a site, broadcasting to (R, L, C), in `like`'s dtype and device."""
        applied = self.applied
        grid = tuple(options["activations_shape"][-2:]) if applied.has_masks else None
        scale = applied.strength * applied.layers[site.name]
        key = (scale, grid, self.rows, self.pictures, self.frames, like.dtype, like.device)
        if key not in self.weights:
            gamma, effect = self._per_row(self.gamma, "γ"), torch.tensor(scale)
            if grid is not None:
                if grid[0] * grid[1] != like.shape[1]:
                    raise FlexIPError(
                        f"the mask cannot be fitted: the layer has {like.shape[1]} tokens for a grid of "
                        f"{grid[1]}×{grid[0]}; another node merges tokens, use FlexIP without a mask there"
                    )
                if applied.gamma_map is not None:
                    gamma = gamma * self._on_grid(applied.gamma_map, grid, "the γ map")
                if applied.attention_mask is not None:
                    effect = effect * self._on_grid(applied.attention_mask, grid, "the attention mask")
            pair = gate_weights(turn(gamma, applied.loaded.adapter.config.dial), effect)
            self.weights[key] = (pair[0].to(like), pair[1].to(like))
        return self.weights[key]

    def _per_row(self, values: Tensor, what: str) -> Tensor:
        """One value for all, or one per picture, → rows of the batch: pictures inside, conds outside."""
        if values.shape[0] == 1:
            return values
        if self.frames is not None and max(self.frames) < values.shape[0]:
            values = values[list(self.frames)]
        if self.pictures % values.shape[0]:
            raise FlexIPError(
                f"{what} has {values.shape[0]} values and the batch {self.pictures} pictures; "
                "connect the latent of the same node, or give as many"
            )
        return values.repeat(self.rows // values.shape[0], *[1] * (values.ndim - 1))

    def _on_grid(self, mask: Tensor, grid: tuple[int, int], what: str) -> Tensor:
        """(B or 1, H, W) → (R or 1, L, 1): the mean over each token's area; where the mask is coarser, interpolated."""
        size = (min(grid[0], mask.shape[1]), min(grid[1], mask.shape[2]))
        fitted = F.adaptive_avg_pool2d(mask[:, None], size)
        fitted = F.interpolate(fitted, grid, mode="bilinear", align_corners=False)
        return self._per_row(fitted.flatten(2).transpose(1, 2), what)
