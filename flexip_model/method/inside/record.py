"""The maps of a whole generation: kept per layer and step, and averaged (our choice; Fig. 7 does not say).

What is kept does not grow with the picture: at most `LARGEST` tokens each way, so a step of one picture is 11,600
tokens over the 16 layers, two kinds and six groups each, in float32: 0.55 MB, and 28 MB for 50 steps, at 512 pixels
and at any larger size.

Letters: B pictures, G groups of tokens, h and w of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import FlexIPError
from ..adapters import Adapter
from ..sites import SD15_SITES, Site
from .maps import GROUPS, Attended, layer_maps

LARGEST = 32
"""Tokens of a map each way (our choice): what 512 pixels have at the layers of half the latent's size."""

ACTIVE = "expected a run with FlexIP active in it, at a strength above 0"


class Maps(NamedTuple):
    """Averaged maps.

    Attributes:
        weights: by group, (B, h, w): the share of its branch's softmax, in [0, 1].
        contributions: by group, (B, h, w): root mean square of what it adds, on one scale for all groups.
        missing: groups without tokens, and those whose branch took no part anywhere; their maps are 0.
    """

    weights: dict[str, Tensor]
    contributions: dict[str, Tensor]
    missing: tuple[str, ...]

    @property
    def absent(self) -> dict[str, str]:
        """The missing groups, each with the words that stand in its map's place."""
        return dict.fromkeys(self.missing, "takes no part")


class AttentionRecord:
    """What one generation shows, by step, layer and picture.

    Args:
        adapter: what the generation runs with; its kind says which tokens are which.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._steps: list[dict[str, dict[int, tuple[Tensor, int]]]] = []

    @property
    def steps(self) -> int:
        """How many have begun."""
        return len(self._steps)

    @property
    def pictures(self) -> int:
        """B, how many were seen."""
        return 1 + max((number for step in self._steps for held in step.values() for number in held), default=-1)

    @property
    def bytes(self) -> int:
        """The memory that the maps take."""
        return sum(held[0].nbytes for step in self._steps for site in step.values() for held in site.values())

    def begin_step(self) -> None:
        """What is added from now on belongs to a new step."""
        self._steps.append({})

    def add(
        self,
        site: Site,
        q: Tensor,
        branches: dict[str, Attended],
        *,
        heads: int,
        grid: tuple[int, int],
        pictures: Sequence[int],
    ) -> None:
        """Note one layer of the step that began last.

        Args:
            q, branches, heads, grid: see `layer_maps`.
            pictures: for each row the number of its picture; of several rows of a picture the mean is kept.

        Raises:
            FlexIPError: the rows of a picture have grids of different sizes, as areas and tiles have.
        """
        maps = layer_maps(q, branches, self.adapter, heads=heads, grid=grid, largest=LARGEST)
        held = self._steps[-1].setdefault(site.name, {})
        for row, number in enumerate(pictures):
            own, (before, count) = maps[:, :, row], held.get(number, (torch.zeros(()), 0))
            if count and before.shape != own.shape:
                raise FlexIPError(
                    f"the attention at {site.name} was seen on grids of {before.shape[-1]}×{before.shape[-2]} and "
                    f"{own.shape[-1]}×{own.shape[-2]} tokens in one step; expected whole pictures: maps of areas or "
                    "tiles do not add up to one"
                )
            held[number] = (before + own, count + 1)

    def at(self, step: int, site: Site, picture: int = 0) -> Tensor:
        """The maps of one layer at one step (1 is the first): (2, G, h, w), attention weights, then contributions.

        Raises:
            FlexIPError: it was not seen.
        """
        held = self._steps[step - 1].get(site.name, {}) if 1 <= step <= self.steps else {}
        if picture not in held:
            raise FlexIPError(f"nothing was seen of {site.name} in step {step} of {self.steps}")
        total, count = held[picture]
        return total / count

    def mean(self, sites: Sequence[Site] = SD15_SITES, first: int = 1, last: int = 0) -> Maps:
        """The mean over layers and steps, each layer brought to the finest one's grid (bilinear).

        Args:
            sites: those that are looked at.
            first, last: steps, 1 is the first; 0 as the last is the last that was seen.

        Raises:
            FlexIPError: no such steps, or nothing was seen there.
        """
        if not self.steps:
            raise FlexIPError(f"no step was seen; {ACTIVE}")
        last = last or self.steps
        if not 1 <= first <= last <= self.steps:
            raise FlexIPError(
                f"the steps {first} to {last} were asked for and {self.steps} were seen; expected first ≤ last, from 1"
            )
        names = {site.name for site in sites}
        steps = [{name: held for name, held in step.items() if name in names} for step in self._steps[first - 1 : last]]
        sizes = {held[0].shape[-2:] for step in steps for site in step.values() for held in site.values()}
        if not sizes:
            raise FlexIPError(f"no attention was seen in these steps and layers; {ACTIVE}")
        finest = max(sizes, key=lambda size: size[0] * size[1])
        total = torch.zeros(self.pictures, 2, len(GROUPS), *finest)
        # A branch that takes no part in some steps contributes 0 there, and has no softmax to take a mean of.
        count = torch.zeros(self.pictures, 2, len(GROUPS), 1, 1)
        for step in steps:
            for site in step.values():
                for number, (summed, times) in site.items():
                    maps = summed / times
                    total[number] += F.interpolate(maps, finest, mode="bilinear", align_corners=False)
                    count[number, 0] += _took_part(maps)
                    count[number, 1] += 1
        mean = total / count.clamp(min=1)
        weights, contributions = ({n: mean[:, kind, i] for i, n in enumerate(GROUPS)} for kind in (0, 1))
        return Maps(weights, contributions, tuple(name for name, values in weights.items() if values.max() == 0))


def _took_part(maps: Tensor) -> Tensor:
    """Which groups' branches took part: (2, G, h, w) → (G, 1, 1) of 0 and 1. A branch's weights are not all 0."""
    present = dict.fromkeys(GROUPS.values(), False)
    for number, branch in enumerate(GROUPS.values()):
        present[branch] |= bool(maps[0, number].max() > 0)
    return torch.tensor([float(present[branch]) for branch in GROUPS.values()])[:, None, None]
