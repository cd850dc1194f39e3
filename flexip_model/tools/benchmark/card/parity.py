"""Parity on the card: ComfyUI's calls of the network, made again by diffusers, in each dtype and by the CPU in fp32."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ....hosts.diffusers import Condition, inject
from ....method.adapters import Adapter, create_adapter
from ....method.gate import gamma_tensor
from ..in_diffusers import drawn_unet
from .inputs import DEMO, adapter_tensors, calls_file, draw

UNPATCHED = "unpatched"
WHAT = "largest difference, of the output's largest value"


def parity(
    models: list[str], dtypes: list[str], gammas: list[float], device: str, seed: int, folder: str
) -> Iterator[dict[str, Any]]:
    """The largest difference over the output's largest value, for what `nodes.dev.card:predict` left in `folder`."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    calls = load_file(calls_file(folder))
    forms: list[float | None] = [None, *gammas]
    for model in models:
        where = torch.device(device)
        unet = _unet(model, where, seed)
        cpu = [
            _predict(unet.to("cpu", torch.float32), model, calls, f"{model}/float32/{form}", form, seed)
            for form in forms
        ]
        yield {
            "model": model,
            "dtype": "float32",
            WHAT: "(what γ changes against the unpatched network)",
            **{_name(form): _difference(found, cpu[0]) for form, found in zip(forms, cpu, strict=True)},
        }
        for dtype in dtypes:
            patched = unet.to(where, getattr(torch, dtype))
            diffusers = [_predict(patched, model, calls, f"{model}/float32/{form}", form, seed) for form in forms]
            comfyui = [calls[f"{model}/{dtype}/{form}/out"] for form in forms]
            for what, ours, theirs in (
                ("diffusers with the CPU's fp32", diffusers, cpu),
                ("ComfyUI with the CPU's fp32", comfyui, cpu),
                ("ComfyUI with diffusers", comfyui, diffusers),
            ):
                found = [_difference(a, b) for a, b in zip(ours, theirs, strict=True)]
                yield {
                    "model": model,
                    "dtype": dtype,
                    WHAT: what,
                    **{_name(form): value for form, value in zip(forms, found, strict=True)},
                }
            # From a cast back nothing is as it was.
            if dtype != "float32":
                unet = _unet(model, where, seed)


def _unet(model: str, device: torch.device, seed: int) -> Any:
    if model == "sd15":
        return drawn_unet(device, torch.float32, seed)
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(DEMO / "unet").float().eval().requires_grad_(False)


@functools.cache
def _adapter(model: str) -> Adapter:
    """The one adapter of a model, float32; it goes where it is needed."""
    config, tensors = adapter_tensors(model)
    adapter = create_adapter(config).eval().requires_grad_(False)
    adapter.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return adapter


def _predict(unet: Any, model: str, calls: dict[str, Tensor], key: str, gamma: float | None, seed: int) -> Tensor:
    """diffusers' answer to a call, float32 on the CPU; `gamma` is None for the unpatched network."""
    like = next(unet.parameters())
    inputs = draw(_adapter(model).config, calls[f"{key}/x"].shape[-1], seed)
    order = calls[f"{key}/conds"].tolist()
    x, t = calls[f"{key}/x"].to(like), calls[f"{key}/t"].to(like.device)
    text = torch.cat([inputs.texts[cond] for cond in order])
    host = None
    with torch.no_grad():
        if gamma is not None:
            adapter = _adapter(model).to(like.device)
            p, s = [], []
            for cond in order:
                features = (inputs.null if cond else inputs.features).to(like.device)
                p.append(adapter.preservation(features))
                s.append(adapter.personalization(inputs.texts[cond].to(like.device), features.cls))
            host = inject(unet, adapter)
            host.condition = Condition(torch.cat(p), torch.cat(s), gamma_tensor(gamma))
        found: Tensor = unet(x, t, encoder_hidden_states=text.to(like)).sample
    if host is not None:
        host.eject()
    return found.float().cpu()


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def _name(gamma: float | None) -> str:
    return UNPATCHED if gamma is None else f"γ {gamma:g}"
