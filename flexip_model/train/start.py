"""What a run begins with: a new adapter, an earlier one, or an IP-Adapter-Plus file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import FlexIPError
from ..files.adapter_file import load_adapter_file
from ..files.ip_adapter import convert_ip_adapter
from ..files.safefile import read_header
from ..method.adapter import FlexIPAdapter
from ..method.config import FlexIPConfig
from ..method.sites import SD15_SITES
from .configs.options import TrainConfig
from .frozen import Frozen


def begin(config: TrainConfig, frozen: Frozen) -> FlexIPAdapter:
    """The adapter at step 0, in fp32 on the CPU; the same in every process and at every call.

    Keys and values of both branches begin as copies of the base's own text attention, as IP-Adapter's do. From an
    IP-Adapter-Plus file come the learnable queries, Resampler_L and the preservation branch's keys and values; its
    input projection reads CLIP's hidden states and has no counterpart here (our choice; Fig. 2).

    Raises:
        FlexIPError: the start is another kind of file, or its sizes are not those of base, encoders and config.
    """
    state = torch.get_rng_state()
    torch.manual_seed(config.seed)
    adapter = FlexIPAdapter(config.adapter_config(**frozen.measured()))
    torch.set_rng_state(state)
    with torch.no_grad():
        for site in SD15_SITES:
            own: Any = frozen.unet.get_submodule(site.diffusers)
            branches = adapter.site(site)
            for branch in (branches.preservation, branches.personalization):
                assert branch is not None
                branch.to_k.weight.copy_(own.to_k.weight)
                branch.to_v.weight.copy_(own.to_v.weight)
    if config.start is not None:
        _take(adapter, *_read(Path(config.start)), Path(config.start))
    return adapter


def _read(path: Path) -> tuple[FlexIPConfig, dict[str, Tensor]]:
    if any(key.startswith(("ip_adapter.", "image_proj.")) for key in read_header(path).tensors):
        config, tensors, _ = convert_ip_adapter(path)
        if config.kind != "ip-adapter-plus":
            raise FlexIPError(
                f"{path} is a plain IP-Adapter, which has no resampler; start from an IP-Adapter-Plus "
                "file, from an adapter file, or from nothing"
            )
        return config, tensors
    info, tensors = load_adapter_file(path)
    return info.config, tensors


def _take(adapter: FlexIPAdapter, config: FlexIPConfig, tensors: dict[str, Tensor], path: Path) -> None:
    own = adapter.state_dict()
    plus = config.kind == "ip-adapter-plus"
    taken = {key: value for key, value in tensors.items() if not (plus and key.startswith("project_retrieval."))}
    for key, value in taken.items():
        if key not in own or own[key].shape != value.shape:
            wanted = list(own[key].shape) if key in own else "nothing of that name"
            raise FlexIPError(
                f"{path} cannot be the start: its {key} is {list(value.shape)}, the config asks for "
                f"{wanted}; set the adapter's sizes in the config to those of the file"
            )
    adapter.load_state_dict(taken, strict=False)
