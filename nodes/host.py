"""What differs from one ComfyUI to the next, found by asking the one that runs; no version is compared anywhere.

| What | Older | Newer |
|---|---|---|
| class that manages a model's memory | `ModelPatcher` | `CoreModelPatcher`, dynamic where the card allows it |
| layers before their weights are loaded | hold memory of the right shape | hold nothing: `weight` and `bias` are None |
| a clone's patches | deep copies | the original's own objects |
| a context window | its frames | its frames, and one before them that is thrown away |
| the dtype in which a network computes | the weights' or `manual_cast_dtype` | `get_dtype_inference()` |
| fields of nodes and inputs | | `search_aliases`, `advanced`, … |
| γ curves | | `CURVE`, from the curve editor |
"""

from __future__ import annotations

import copy
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_patcher
import torch
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from torch import Tensor, nn

from ..flexip_model.common.errors import FlexIPError


def manage(
    module: nn.Module, load_device: torch.device, offload_device: torch.device, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """ComfyUI's handle on a model, of the class that its own loaders use now (dynamic VRAM, where it has that)."""
    kind = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        kind = getattr(comfy.model_patcher, "CoreModelPatcher", kind)
    return kind(module, load_device=load_device, offload_device=offload_device)


def reload_with(
    patcher: comfy.model_patcher.ModelPatcher, make: Callable[..., comfy.model_patcher.ModelPatcher], *arguments: Any
) -> None:
    """Tell ComfyUI how to make this model anew.

    Newer hosts do so where hooks or several GPUs need a copy that is not dynamic; they add `disable_dynamic=True`.
    """
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (make, arguments)


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill a module that ComfyUI built, strictly, in the dtype of its layers.

    Layers that hold nothing yet take whatever they are given, so shapes are compared before.

    Raises:
        FlexIPError: tensors are missing, too many or of other shapes; nothing is loaded then.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    empty_bias: dict[str, tuple[int, ...]] = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and part.weight is None:
            wanted[f"{name}.weight"] = (part.out_features, part.in_features)
            empty_bias[f"{name}.bias"] = (part.out_features,)
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    # Whether an empty layer has a bias, the layer alone knows: it reports one that is missing.
    wanted |= {key: shape for key, shape in empty_bias.items() if key in found}
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if not wrong:
        like = next(parameter for parameter in module.parameters() if not parameter.is_meta)
        loaded = module.load_state_dict({key: t.to(like.dtype) for key, t in tensors.items()}, strict=False)
        wrong = sorted([*loaded.missing_keys, *loaded.unexpected_keys])
    if wrong:
        here, expected = found.get(wrong[0], "missing"), (wanted | empty_bias).get(wrong[0], "none")
        raise FlexIPError(
            f"{folder} does not hold what its config.json says: {len(wrong)} tensors differ, the first is {wrong[0]} "
            f"({here}, expected {expected}); get the pack again"
        )


def keep_patches_apart(model: comfy.model_patcher.ModelPatcher, clone: comfy.model_patcher.ModelPatcher) -> None:
    """Give a clone attention patches of its own that share their weights with the original's.

    Packs add to the patch that they find in a slot (IPAdapter_plus's `add`). Where clones share patches, that changes
    every other model that has it; where they are copied deeply, each clone holds the other pack's weights once more.
    Fits `CallbacksMP.ON_CLONE`.
    """
    slots = _cross_attention(clone)
    for slot, patch in _cross_attention(model).items():
        if type(slots.get(slot)) is type(patch):
            slots[slot] = _twin(patch)


def _cross_attention(model: comfy.model_patcher.ModelPatcher) -> dict[Any, Any]:
    return model.model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {})


def _twin(patch: Any) -> Any:
    """A copy of an object with lists and dictionaries of its own, down to the first thing that is neither."""
    try:
        twin = copy.copy(patch)
    except Exception:  # whatever a foreign object raises when it cannot be copied
        return patch
    if twin is not patch:
        for name, value in getattr(twin, "__dict__", {}).items():
            twin.__dict__[name] = _own_containers(value)
    return twin


def _own_containers(value: Any) -> Any:
    if type(value) is list:
        return [_own_containers(item) for item in value]
    if type(value) is dict:
        return {key: _own_containers(item) for key, item in value.items()}
    return value


def window_frames(options: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The frame that each picture of the batch is, where context windows cut the batch; else None.

    The core's windows and those of AnimateDiff-Evolved, which tells them in `ad_params`.
    """
    theirs = options.get("ad_params", {}).get("sub_idxs")
    if theirs is not None:
        return tuple(theirs)
    window = options.get("context_window")
    if window is None or getattr(window, "dim", 0) != 0:
        return None
    # The window itself cuts, so a frame that the host puts before its own is counted.
    return tuple(window.get_tensor(torch.arange(max(window.index_list) + 1)).tolist())


def compute_dtype(model: Any, x: Tensor) -> torch.dtype:
    """The dtype in which a model's network computes; the batch's where there is no model to ask."""
    if hasattr(model, "get_dtype_inference"):
        return model.get_dtype_inference()
    if hasattr(model, "get_dtype"):
        return model.manual_cast_dtype or model.get_dtype()
    return x.dtype


def warn(text: str, name: str) -> None:
    """A sentence in the log, with the adapter's name, and on the node at work where a server runs a graph."""
    logging.warning("FlexIP: %s: %s", name, text)
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and server.last_node_id is not None:
        server.send_progress_text(f"⚠ {text}", server.last_node_id)


def show_text(text: str) -> None:
    """Show a text on the node that runs; nothing outside a server."""
    context, server = get_executing_context(), sys.modules.get("server")
    if context is not None and server is not None:
        server.PromptServer.instance.send_progress_text(text, context.node_id)


def fields(kind: Callable[..., Any], **newer: Any) -> dict[str, Any]:
    """Those of these arguments that the host's schema class has."""
    known = inspect.signature(kind).parameters
    return {name: value for name, value in newer.items() if name in known}


def or_curve(text: io.Input) -> io.Input:
    """The input, taking a `CURVE` too where the host has a curve editor."""
    curve = getattr(io, "Curve", None)
    if curve is None:
        return text
    return io.MultiType.Input(text, types=[curve])
