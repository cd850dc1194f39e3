"""The kinds of adapters: FlexIP, and the two IP-Adapters that can be imported.

A new kind is a class here and an entry of `ADAPTERS`; nothing else compares a config's `kind`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ...common.errors import FlexIPError
from ..config import FlexIPConfig
from .base import Adapter, EncoderOutputs, ReferenceFeatures, SiteBranches
from .flexip import FlexIPAdapter
from .ip_adapter import IPAdapter, IPAdapterPlus

__all__ = [
    "ADAPTERS",
    "Adapter",
    "EncoderOutputs",
    "FlexIPAdapter",
    "IPAdapter",
    "IPAdapterPlus",
    "ReferenceFeatures",
    "SiteBranches",
    "adapter_class",
    "create_adapter",
]

ADAPTERS: tuple[type[Adapter], ...] = (FlexIPAdapter, IPAdapter, IPAdapterPlus)


def adapter_class(config: FlexIPConfig) -> type[Adapter]:
    """The class of a config's `kind`.

    Raises:
        FlexIPError: there is none of that name.
    """
    for known in ADAPTERS:
        if known.kind == config.kind:
            return known
    raise FlexIPError(f"adapter kind is {config.kind!r}; expected one of {', '.join(known.kind for known in ADAPTERS)}")


def create_adapter(config: FlexIPConfig, ops: Any = nn) -> Adapter:
    """A new adapter of the config's kind, with random weights.

    Args:
        config: kind and sizes.
        ops: where `Linear` and `LayerNorm` come from; ComfyUI passes its casting ones.

    Raises:
        FlexIPError: the kind is unknown.
    """
    return adapter_class(config)(config, ops)
