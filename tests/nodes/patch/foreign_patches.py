"""What other packs leave in attention slots: a stand-in with the interface of the best known one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

SLOTS = (("input", 1), ("input", 4), ("middle", 0), ("output", 3))


class Stacking:
    """IPAdapter_plus's patch: one object per slot, which holds its whole adapter, and to which later nodes `add`."""

    def __init__(self, callback: Callable, **kwargs: Any) -> None:
        self.callback = [callback]
        self.kwargs = [kwargs]

    def add(self, callback: Callable, **kwargs: Any) -> None:
        self.callback.append(callback)
        self.kwargs.append(kwargs)
        for name, value in kwargs.items():
            setattr(self, name, value)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        attention = importlib.import_module("comfy.ldm.modules.attention")
        out = attention.optimized_attention(q, k, v, extra_options["n_heads"])
        for callback, kwargs in zip(self.callback, self.kwargs, strict=True):
            out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out


class HeavyAdapter(nn.Module):
    """The weights that such a patch holds."""

    def __init__(self, megabytes: float = 0.01) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(round(megabytes * 1e6 / 4)), requires_grad=False)


def _add_some(out: Tensor, q: Tensor, k: Tensor, v: Tensor, extra_options: Any, weight: float, **_: Any) -> Tensor:
    return weight * q


def stack(model: Any, weight: float, adapter: HeavyAdapter | None = None, slots: Iterable = SLOTS) -> Any:
    """A clone with `weight` times the queries added to the attention, in IPAdapter_plus's way of patching."""
    model = model.clone()
    options = model.model_options["transformer_options"].copy()
    options["patches_replace"] = {**options.get("patches_replace", {})}
    taken = options["patches_replace"]["attn2"] = {**options["patches_replace"].get("attn2", {})}
    for slot in slots:
        kwargs = {"weight": weight, "ipadapter": adapter, "sigma_start": 1e9, "sigma_end": 0.0}
        if slot in taken:
            taken[slot].add(_add_some, **kwargs)
        else:
            taken[slot] = Stacking(_add_some, **kwargs)
            model.model_options["transformer_options"] = options
    return model
