"""The adapter that a run begins with: a new one, an earlier one, or an IP-Adapter-Plus file."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import FlexIPError
from ..files.adapter_file import load_adapter_file
from ..files.identify import is_ip_adapter
from ..files.ip_adapter import convert_ip_adapter
from ..files.safefile import read_header
from ..method.adapters import FlexIPAdapter, IPAdapterPlus, adapter_class
from ..method.config import FlexIPConfig
from .configs.options import TrainConfig
from .frozen import Frozen

log = logging.getLogger(__name__)

FREE = ("alpha", "beta")
"""Fields of `FlexIPConfig` that a config may set otherwise than the start did: no weight depends on them."""
RESAMPLER = ("width", "depth", "heads", "head_width", "feed_forward", "queries")
"""Fields that an IP-Adapter-Plus file decides."""


@dataclass(frozen=True)
class Start:
    """A file that a run begins from.

    Attributes:
        path: of the file.
        values: the fields of `FlexIPConfig` that a run takes over where its config leaves them open.
        tensors: those that have a counterpart in a FlexIP adapter, by the adapter's keys.
        encoders: names and hashes of the encoders that it was trained beside, where the file tells.
    """

    path: Path
    values: dict[str, Any]
    tensors: dict[str, Tensor]
    encoders: dict[str, dict[str, str]]


def begin(config: TrainConfig, frozen: Frozen) -> FlexIPAdapter:
    """The adapter at step 0, in fp32 on the CPU; the same in every process and at every call.

    Keys and values of both branches begin as copies of the base's own text attention, as IP-Adapter's do. From an
    IP-Adapter-Plus file come the learnable queries, Resampler_L and the preservation branch's keys and values; its
    input projection reads CLIP's hidden states and has no counterpart here, where DINO's patches stand in their place
    (Fig. 3; our choice). Sizes that the config does not name are the file's.

    Raises:
        FlexIPError: as `read_start`; sizes that are not those of base and encoders.
    """
    start = read_start(config)
    measured = frozen.widths()
    for name, value in measured.items():
        named = config.adapter.get(name, value)
        if _plain(named) != _plain(value):
            raise FlexIPError(
                f"the config's adapter says {name} {_plain(named)}, and base and encoders have {_plain(value)}; "
                f"leave {name} out"
            )
        held = start.values.get(name, value) if start else value
        if start and _plain(held) != _plain(value):
            raise FlexIPError(
                f"{start.path} cannot be the start: it was made for {name} {_plain(held)}, and base and encoders have "
                f"{_plain(value)}; give the base and encoders that it belongs to, or another start"
            )
    taken = start.values if start else {}
    state = torch.get_rng_state()
    torch.manual_seed(config.seed)
    adapter = FlexIPAdapter(config.adapter_config(**taken | measured))
    torch.set_rng_state(state)
    adapter.copy_text_attention(frozen.unet)
    if start is not None:
        set_anew = any(name in config.adapter for name in FREE)
        adapter.load_state_dict(
            {key: value for key, value in start.tensors.items() if key != "gate.logits" or not set_anew}, strict=False
        )
        for role, encoder in frozen.hashes().items():
            told = start.encoders.get(role, {}).get("hash")
            if told and told != encoder["hash"]:
                log.info(
                    f"{start.path} was trained beside another {role} encoder ({start.encoders[role].get('name')}) than "
                    f"{encoder['name']}; it has to learn this one's features first"
                )
    return adapter


def read_start(config: TrainConfig) -> Start | None:
    """The file that the config names as its start; None where it names none.

    Raises:
        FlexIPError: another kind of file, or one whose sizes are not those that the config names.
    """
    if config.start is None:
        return None
    start = _read(Path(config.start))
    for name, value in config.adapter.items():
        held = start.values.get(name, value)
        # A gate of constants may begin to learn; one that has learned would lose what it learned.
        settable = name in FREE or (name == "learnable_gate" and value)
        if not settable and _plain(held) != _plain(value):
            raise FlexIPError(
                f"{start.path} cannot be the start: it has {name} {_plain(held)}, and the config's adapter says "
                f"{_plain(value)}; leave {name} out of the config to take the file's, or give another start"
            )
    return start


def _read(path: Path) -> Start:
    if is_ip_adapter(read_header(path)):
        config, tensors, _ = convert_ip_adapter(path)
        if not issubclass(adapter_class(config), IPAdapterPlus):
            raise FlexIPError(
                f"{path} is a plain IP-Adapter, which has no resampler; start from an IP-Adapter-Plus "
                "file, from an adapter file, or from nothing"
            )
        return _of_ip_adapter_plus(path, config, tensors)
    info, tensors = load_adapter_file(path)
    if issubclass(adapter_class(info.config), IPAdapterPlus):
        return _of_ip_adapter_plus(path, info.config, tensors)
    if info.config.kind != FlexIPConfig.kind:
        raise FlexIPError(
            f"{path} cannot be the start: it is an adapter of the kind {info.config.kind}; start from an "
            "IP-Adapter-Plus, from a FlexIP adapter, or from nothing"
        )
    # Its dial was measured on what it was before this training.
    values = {f.name: getattr(info.config, f.name) for f in fields(FlexIPConfig) if f.name != "dial"}
    return Start(path, values, tensors, info.encoders)


def _of_ip_adapter_plus(path: Path, config: FlexIPConfig, tensors: dict[str, Tensor]) -> Start:
    values = {name: getattr(config, name) for name in (*RESAMPLER, "token_width", "channels")}
    return Start(path, values, {k: v for k, v in tensors.items() if not k.startswith("project_retrieval.")}, {})


def _plain(value: Any) -> Any:
    """A list for a tuple: YAML has no tuples."""
    return list(value) if isinstance(value, tuple) else value
