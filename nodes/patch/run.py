"""What the patch knows while sampling: projected keys and values of a run, the gate's weights of a step.

Both live in the options that ComfyUI passes along for one run and drops after it, interrupted or not, so patches
themselves never change.

Nothing here goes by the order of rows. Each row of the model's batch brings its own P, its own S and the number of its
picture, as tensors, so whoever repeats, cuts or reorders a batch does the same to them; what is kept from step to step
is found again by what it was made from.

Letters: R rows of the model's batch (conds × pictures, in any order), N tokens of a branch, W token width, L queries
and C width of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...flexip_model.common.errors import FlexIPError
from ...flexip_model.method import gate
from ...flexip_model.method.attention import KeyValue
from ...flexip_model.method.gate import gamma_tensor
from ...flexip_model.method.sites import Site
from ..host import window_frames
from ..schedule import gamma_at
from .applied import Applied

TABLE = 256
KEPT = 16
"""How many batches of tokens keep their keys and values in a run, the latest used first (our choice)."""


@dataclass(frozen=True, eq=False)
class RowTokens:
    """What the rows of one forward bring along.

    Attributes:
        p: (R, N, W).
        s: (R, N, W), or None where the adapter or the prompt has none.
        pictures: for each row the number of its picture in the batch that the sampler works on, and how many that has.
    """

    p: Tensor
    s: Tensor | None
    pictures: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, p: Tensor, s: Tensor | None, index: Tensor, rows: int) -> RowTokens:
        """From the model's keyword arguments, for a batch of that many rows.

        Raises:
            FlexIPError: the batch has other rows than what comes with it.
        """
        found = {len(tensor) for tensor in (p, s, index) if tensor is not None}
        if found != {rows}:
            raise FlexIPError(
                f"the model is given {rows} rows and FlexIP's tokens for {' and '.join(map(str, sorted(found)))}; "
                "another node repeats or cuts the pictures without the conditioning that belongs to them (a tiled or "
                "windowed sampler), remove it or update it"
            )
        return cls(p, s, tuple((int(place), int(count)) for place, count in index.flatten(1).tolist()))


class SamplingRun:
    """One sampling run: the schedule that it follows, and what is worth keeping from step to step."""

    def __init__(self, sampling: Any) -> None:
        self.sampling = sampling
        self._kept: list[tuple[tuple, Tensor, dict[str, KeyValue]]] = []
        self._weights: dict[Applied, dict[tuple, tuple[Tensor, Tensor]]] = {}
        self._sigmas: list[float] | None = None
        self._ranges: dict[tuple[float, float], tuple[float, float]] = {}
        self._acted: dict[Applied, Acted] = {}

    def projected(self, name: tuple, tokens: Tensor) -> dict[str, KeyValue]:
        """Where the keys and values of exactly these tokens are kept, by site."""
        for place, (other, kept, _) in enumerate(self._kept):
            if other == name and kept.shape == tokens.shape and torch.equal(kept, tokens):
                self._kept.insert(0, self._kept.pop(place))
                return self._kept[0][2]
        self._kept = [(name, tokens.clone(), {}), *self._kept[: KEPT - 1]]
        return self._kept[0][2]

    def weights(self, applied: Applied) -> dict[tuple, tuple[Tensor, Tensor]]:
        """The gate's weights of an applied adapter, by layer."""
        return self._weights.setdefault(applied, {})

    def of(self, applied: Applied) -> Acted:
        """What came of an applied adapter in this run."""
        return self._acted.setdefault(applied, Acted())

    def active(self, start: float, end: float, sigma: float) -> bool:
        """Whether a step lies in [start, end) of the sampling; 1 as the end takes in the last step.

        By sigma, as ComfyUI's own ranges; half open, so that neighboring ranges never share a step.
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


class Acted:
    """Where an adapter acted in one run, and what was seen where it did not.

    Attributes:
        forwards: of the model, in any part of the sampling.
        with_tokens: those in which it was to act.
        sites: the names of those at which it did.
        instead: by the name of a site, the class of what sat in its place.
    """

    def __init__(self) -> None:
        self.forwards = 0
        self.with_tokens = 0
        self.sites: set[str] = set()
        self.instead: dict[str, str] = {}


class Step:
    """One forward of the model for one applied adapter: tokens of the batch, and its gate.

    Made outside of the network, which may be compiled: everything that is looked up, compared or kept is done here, and
    the network's patches only read tensors. A compiled network may not look whether what they read has changed its
    form (ComfyUI's own nodes switch that off), so it must not be able to.
    """

    def __init__(
        self,
        applied: Applied,
        run: SamplingRun,
        tokens: RowTokens,
        *,
        options: dict[str, Any],
        like: Tensor,
        context: Tensor | None,
    ) -> None:
        self.applied, self.tokens, self.like, self.context = applied, tokens, like, context
        self.rows = len(tokens.p)
        self.frames = window_frames(options)
        self.asked = options.get("patches", {}).get("attn2_patch", ())
        self.gamma = applied.gamma
        if applied.curve is not None:
            self.gamma = gamma_tensor(gamma_at(applied.curve, run.position(float(options["sigmas"][0]))))
        self._weights: dict[tuple, tuple[Tensor, Tensor]] = run.weights(applied) if applied.curve is None else {}
        # A branch whose weight is zero everywhere costs nothing.
        has_p = bool((self.gamma > 0).any())
        has_s = tokens.s is not None and (applied.gamma_map is not None or bool((self.gamma < 1).any()))
        self._keys = {
            branch: (values, run.projected((applied.loaded.tag, branch, like.dtype, like.device), values))
            for branch, values in (
                ("preservation", tokens.p if has_p else None),
                ("personalization", tokens.s if has_s else None),
            )
            if values is not None
        }

    def key_values(self, site: Site) -> tuple[KeyValue | None, KeyValue | None]:
        """Keys and values of P and of S at a site, (R, N, C), dtype and device the network's; None where not needed."""
        return self._project(site, "preservation"), self._project(site, "personalization")

    def _project(self, site: Site, branch: str) -> KeyValue | None:
        if branch not in self._keys:
            return None
        tokens, kept = self._keys[branch]
        if site.name not in kept:
            kept[site.name] = getattr(self.applied.loaded.adapter.site(site), branch)(tokens.to(self.like))
        return kept[site.name]

    def gate(self, site: Site, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        """The weights of P and S at a site, (R or 1, L or 1, 1) in the network's dtype and device.

        Args:
            grid: the layer's height and width in tokens; None where no mask needs it.
        """
        applied = self.applied
        scale = applied.strength * applied.layers[site.name]
        key = (scale, grid, self.tokens.pictures, self.frames, self.like.dtype, self.like.device)
        if key not in self._weights:
            gamma, effect = self._per_row(self.gamma, "γ"), torch.tensor(scale)
            if grid is not None:
                if applied.gamma_map is not None:
                    gamma = gamma * self._on_grid(applied.gamma_map, grid, "the γ map")
                if applied.attention_mask is not None:
                    effect = effect * self._on_grid(applied.attention_mask, grid, "the attention mask")
            pair = gate.weights(gamma, effect, applied.loaded.adapter.config.dial)
            self._weights[key] = (pair[0].to(self.like), pair[1].to(self.like))
        return self._weights[key]

    def _per_row(self, values: Tensor, what: str) -> Tensor:
        """One value for all, or one per picture, → rows of the batch, each by the number of its picture."""
        count = values.shape[0]
        if count == 1:
            return values
        if self.frames is not None:
            wanted = [self.frames[place] for place, _ in self.tokens.pictures]
            if max(wanted) >= count:
                raise FlexIPError(
                    f"{what} has {count} values and the sampler works on frame {max(wanted) + 1}; give one value, or "
                    "as many as there are frames"
                )
            return values[wanted]
        batch = self.tokens.pictures[0][1]
        if batch % count:
            raise FlexIPError(
                f"{what} has {count} values and the sampler works on {batch} pictures at a time; connect the latent of "
                "FlexIP γ Sweep straight to a sampler that takes a batch as a whole, or, with a node that goes picture "
                "by picture or cuts the batch, use Apply FlexIP with one value"
            )
        # A batch that is a multiple is the sweep again and again, as ComfyUI repeats latents.
        return values[[place % count for place, _ in self.tokens.pictures]]

    def _on_grid(self, mask: Tensor, grid: tuple[int, int], what: str) -> Tensor:
        """(B or 1, H, W) → (R or 1, L, 1): the mean over each token's area; where the mask is coarser, interpolated."""
        size = (min(grid[0], mask.shape[1]), min(grid[1], mask.shape[2]))
        fitted = F.adaptive_avg_pool2d(mask[:, None], size)
        fitted = F.interpolate(fitted, grid, mode="bilinear", align_corners=False)
        return self._per_row(fitted.flatten(2).transpose(1, 2), what)

    def sources(self, q: Tensor, site: Site, options: dict[str, Any]) -> list[int]:
        """Which row of the batch each row of a layer's queries came from, where another node made more of them.

        Regional prompts repeat rows in an `attn2_patch`, each in an order of its own. That patch is asked with queries
        that hold nothing but the numbers of their rows.

        Raises:
            FlexIPError: the answer is not a number of a row; no such patch is there.
        """
        # In float32: bfloat16 has no whole numbers of its own beyond 256.
        numbers = torch.arange(1, self.rows + 1, device=q.device, dtype=torch.float32)
        asked = numbers[:, None, None].expand(self.rows, *q.shape[1:]).clone()
        context = asked if self.context is None else self.context.clone().to(q)
        value = context
        for patch in self.asked:
            asked, context, value = patch(asked, context, value, options)
        found = asked[:, 0, 0].round().long() - 1
        plain = bool((asked == (found + 1).to(asked)[:, None, None]).all())
        if len(asked) != len(q) or not plain or bool((found < 0).any()) or bool((found >= self.rows).any()):
            raise FlexIPError(
                f"at {site.name} the model's attention has {len(q)} rows and FlexIP's tokens {self.rows}, and no node "
                "says which rows were repeated; a node for regional prompts or one that splits the batch inside the "
                "model does that, remove it or use Conditioning (Set Mask) and Combine for regions"
            )
        return found.tolist()
