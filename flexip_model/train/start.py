"""The adapter that a run begins with: a new one, an earlier one, or an IP-Adapter-Plus file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..common.errors import FlexIPError
from ..files.adapter_file import load_adapter_file
from ..files.identify import is_ip_adapter
from ..files.ip_adapter import convert_ip_adapter
from ..files.safefile import read_header
from ..method.adapters import FlexIPAdapter, IPAdapterPlus, adapter_class
from .configs.options import TrainConfig
from .frozen import Frozen


def begin(config: TrainConfig, frozen: Frozen) -> FlexIPAdapter:
    """The adapter at step 0, in fp32 on the CPU; the same in every process and at every call.

    Keys and values of both branches begin as copies of the base's own text attention, as IP-Adapter's do. From an
    IP-Adapter-Plus file come the learnable queries, Resampler_L and the preservation branch's keys and values; its
    input projection reads CLIP's hidden states and has no counterpart here, where DINO's patches stand in their place
    (Fig. 3; our choice).

    Raises:
        FlexIPError: the start is another kind of file, or its sizes are not those of base, encoders and config.
    """
    state = torch.get_rng_state()
    torch.manual_seed(config.seed)
    adapter = FlexIPAdapter(config.adapter_config(**frozen.widths()))
    torch.set_rng_state(state)
    adapter.copy_text_attention(frozen.unet)
    if config.start is not None:
        _take(adapter, _read(Path(config.start)), Path(config.start))
    return adapter


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that have a counterpart in a FlexIP adapter, by the adapter's keys."""
    if is_ip_adapter(read_header(path)):
        config, tensors, _ = convert_ip_adapter(path)
        if not issubclass(adapter_class(config), IPAdapterPlus):
            raise FlexIPError(
                f"{path} is a plain IP-Adapter, which has no resampler; start from an IP-Adapter-Plus "
                "file, from an adapter file, or from nothing"
            )
        return {key: value for key, value in tensors.items() if not key.startswith("project_retrieval.")}
    return load_adapter_file(path)[1]


def _take(adapter: FlexIPAdapter, taken: dict[str, Tensor], path: Path) -> None:
    own = adapter.state_dict()
    for key, value in taken.items():
        if key not in own or own[key].shape != value.shape:
            wanted = list(own[key].shape) if key in own else "nothing of that name"
            raise FlexIPError(
                f"{path} cannot be the start: its {key} is {list(value.shape)}, the config asks for "
                f"{wanted}; set the adapter's sizes in the config to those of the file"
            )
    adapter.load_state_dict(taken, strict=False)
