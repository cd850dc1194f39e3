"""One adapter on one model, and how strongly: what the nodes set and the patch reads."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import comfy.model_patcher
from torch import Tensor

from ...flexip_model.method.sites import SITE_BY_COMFY, Site
from ..schedule import Curve, parse_layers
from ..wires import LoadedAdapter


@dataclass(frozen=True, eq=False, repr=False)
class Applied:
    """One adapter on one model, and how strongly; never changes, so clones share it.

    It is one of the model's patches (under a name of its own, which no layer calls), so that ComfyUI loads its weights.

    Attributes:
        gamma: (B or 1, 1, 1) in [0, 1], on the CPU.
        strength: factor on both branches.
        start, end: the part of the sampling in which it acts, in [0, 1].
        gamma_map: (B or 1, H, W), H × W its own pixels: factor on γ per place, or None.
        attention_mask: (B or 1, H, W) factor on strength per place, or None.
        curve: γ over the steps in place of `gamma`, or None.
        layers: factor on strength per site.
    """

    loaded: LoadedAdapter
    gamma: Tensor
    _: KW_ONLY
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    gamma_map: Tensor | None = None
    attention_mask: Tensor | None = None
    curve: Curve | None = None
    layers: dict[str, float] = field(default_factory=lambda: parse_layers(""))

    @property
    def has_masks(self) -> bool:
        """Whether the weights differ from place to place."""
        return self.gamma_map is not None or self.attention_mask is not None

    @property
    def sites(self) -> dict[tuple[str, int], Site]:
        """The sites at which it acts, by ComfyUI's name of the block."""
        return {key: site for key, site in SITE_BY_COMFY.items() if self.layers[site.name] != 0}

    def models(self) -> list[comfy.model_patcher.ModelPatcher]:
        """The weights that ComfyUI has to load together with the model; it asks each patch of a model."""
        return [self.loaded.patcher]

    def to(self, device_or_dtype: Any) -> Applied:
        """ComfyUI asks patches to move; the weights are the patcher's."""
        return self

    def __deepcopy__(self, memo: dict) -> Applied:
        return self
