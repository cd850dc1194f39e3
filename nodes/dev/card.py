"""`python -m flexip_model benchmark card`, inside ComfyUI: calls of the network for parity, steps, memory modes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...flexip_model.files.adapter_file import AdapterInfo
from ...flexip_model.method.gate import gamma_tensor
from ...flexip_model.tools.benchmark.card.inputs import DEMO, Inputs, adapter_tensors, calls_file, draw
from ...flexip_model.tools.benchmark.timing import in_turn
from ..encode import attach, embed
from ..loading.diffusers_folder import load_unet
from ..patch.applied import Applied
from ..patch.apply import apply_adapter
from ..wires import LoadedAdapter, manage_adapter
from .benchmark import random_model

SIGMA = 5.0
"""Of the one step whose network is looked at."""
UNET_OPTIONS = {"float32": "fp32_unet", "float16": "fp16_unet", "bfloat16": "bf16_unet"}
"""ComfyUI's option for each dtype of a UNet's weights."""


def predict(
    models: list[str], dtypes: list[str], gammas: list[float], demo_size: int, size: int, seed: int, folder: str
) -> Iterator[dict[str, Any]]:
    """Leave what goes into and out of the network, for each model, dtype and γ (None: unpatched), in `folder`."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Tensor] = {}
    for name in models:
        loaded = _adapter(name)
        inputs = draw(loaded.adapter.config, (size if name == "sd15" else demo_size) // 8, seed)
        for dtype in dtypes:
            model = _model(name, dtype, seed)
            for gamma in (None, *gammas):
                for key, tensor in _call(model, loaded, inputs, gamma).items():
                    found[f"{name}/{dtype}/{gamma}/{key}"] = tensor.contiguous().cpu()
            comfy.model_management.unload_all_models()
    save_file(found, calls_file(folder))
    yield {}


def steps(full: bool, size: int, dtype: str, steps: int, rounds: int, seed: int) -> Iterator[dict[str, Any]]:
    """A guided run, patched against unpatched; keys and values are projected in it."""
    name = "sd15" if full else "demo"
    loaded, model = _adapter(name), _model(name, dtype, seed)
    patched = apply_adapter(model, Applied(loaded, gamma_tensor(0.5)))
    inputs = draw(loaded.adapter.config, size // 8, seed)
    prompts = _prompts(loaded, inputs)
    times = in_turn(
        {
            "ours": lambda: _sample(patched, inputs, prompts, steps),
            "baseline": lambda: _sample(model, inputs, prompts, steps),
        },
        rounds,
    )
    ratios = [a / b for a, b in zip(times["ours"], times["baseline"], strict=True)]
    yield {
        "step": f"ComfyUI, {size} px, batch 2, {dtype}, runs of {steps} steps: FlexIP against unpatched",
        "ms": statistics.median(times["ours"]) / steps * 1e3,
        "compared with, ms": statistics.median(times["baseline"]) / steps * 1e3,
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def memory(
    mode: str, full: bool, size: int, dtype: str, steps: int, seed: int, folder: str
) -> Iterator[dict[str, Any]]:
    """A guided run in the memory mode of this process: the peak, and the latents against the first mode's."""
    name = "sd15" if full else "demo"
    loaded, model = _adapter(name), _model(name, dtype, seed)
    patched = apply_adapter(model, Applied(loaded, gamma_tensor(0.5)))
    inputs = draw(loaded.adapter.config, size // 8, seed)
    prompts = _prompts(loaded, inputs)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    latents = _sample(patched, inputs, prompts, steps)
    plain = _sample(model, inputs, prompts, steps)
    file = Path(folder) / "latents.safetensors"
    if not file.is_file():
        save_file({"latents": latents.contiguous()}, file)
    first = load_file(file)["latents"]
    yield {
        "mode": mode,
        "peak of tensors, GB": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "of the model's weights on the card, GB": patched.loaded_size() / 1e9 if cuda else None,
        "all of its weights, GB": patched.model_size() / 1e9,
        "largest difference of the latents from the first mode's": float((latents - first).abs().max()),
        "from an unpatched run, in it": float((latents - plain).abs().max()),
    }


def _adapter(name: str) -> LoadedAdapter:
    config, tensors = adapter_tensors(name)
    return manage_adapter(AdapterInfo(config, False), tensors, name)


def _model(name: str, dtype: str, seed: int) -> comfy.model_patcher.ModelPatcher:
    if name == "sd15":
        return random_model(getattr(torch, dtype), seed)
    args = comfy.cli_args.args
    for option in UNET_OPTIONS.values():
        setattr(args, option, option == UNET_OPTIONS[dtype])
    return load_unet(DEMO)


def _prompts(loaded: LoadedAdapter, inputs: Inputs) -> list[Any]:
    """Both conditionings, as FlexIP Encode Reference makes them."""
    embeds = embed(loaded, inputs.features, inputs.null)
    given = ((embeds.preservation, embeds.cls), (embeds.null, inputs.null.cls))
    return [attach(loaded, [[text, {}]], *pair) for text, pair in zip(inputs.texts, given, strict=True)]


def _sample(model: comfy.model_patcher.ModelPatcher, inputs: Inputs, prompts: list[Any], steps: int) -> Tensor:
    """A guided run with ddim; float32 latents on the CPU."""
    positive, negative = prompts
    latent = torch.zeros_like(inputs.noise)
    found = comfy.sample.sample(
        model,
        inputs.noise,
        steps,
        7.5,
        "ddim",
        "normal",
        positive,
        negative,
        latent,
        disable_pbar=True,
        seed=0,
    )
    return found.float().cpu()


def _call(
    model: comfy.model_patcher.ModelPatcher, loaded: LoadedAdapter, inputs: Inputs, gamma: float | None
) -> dict[str, Tensor]:
    """What goes into the network and what comes out in one guided step: x, t, out, and conds (0 positive, 1 negative)
    in the order of the rows."""
    seen: dict[str, Tensor] = {}

    def record(executor: Callable[..., Tensor], x: Tensor, t: Tensor, *given: Any, **named: Any) -> Tensor:
        out = executor(x, t, *given, **named)
        order = torch.tensor(given[3]["cond_or_uncond"])
        seen.update(x=x.float().clone(), t=t.clone(), out=out.float().clone(), conds=order)
        return out

    patched = model if gamma is None else apply_adapter(model, Applied(loaded, gamma_tensor(gamma)))
    watched = patched.clone()
    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "card", record)
    positive, negative = _prompts(loaded, inputs)
    with torch.inference_mode():
        comfy.samplers.sample(
            watched,
            inputs.noise,
            positive,
            negative,
            7.5,
            watched.load_device,
            comfy.samplers.ksampler("euler"),
            torch.tensor([SIGMA, 0.0]),
            model_options=watched.model_options,
            latent_image=torch.zeros_like(inputs.noise),
            disable_pbar=True,
            seed=0,
        )
    return seen
