"""What the pack costs inside ComfyUI at SD1.5's sizes, with random weights; run by `python -m flexip_model benchmark`.

Comparisons are made in turn in one process; results are dictionaries, because the command that prints them does not
import ComfyUI.
"""

from __future__ import annotations

import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import comfy.utils
import psutil
import torch

from ...flexip_model.encoders import Encoders, load_clip, load_dino
from ...flexip_model.files.adapter_file import AdapterInfo
from ...flexip_model.method import sd15
from ...flexip_model.method.adapters import FlexIPAdapter
from ...flexip_model.method.config import FlexIPConfig
from ...flexip_model.method.gate import gamma_tensor
from ...flexip_model.tools.benchmark.timing import Row, alone, compare
from ...flexip_model.tools.random_weights import random_tensors, write_encoders
from ..encode import attach, embed, encode_features
from ..host import manage
from ..loading.diffusers_folder import SD15_UNET
from ..patch.applied import Applied
from ..patch.apply import apply_adapter
from ..wires import LoadedAdapter, manage_adapter, manage_encoders

CLONES = 10


def random_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """ComfyUI's own SD1.5 with random weights, 860 M.

    They are those of `in_diffusers.drawn_unet`, drawn on the device where the model will compute.
    """
    unet_config = {
        **SD15_UNET,
        "in_channels": sd15.LATENT_CHANNELS,
        "out_channels": sd15.LATENT_CHANNELS,
        "model_channels": sd15.UNET_WIDTHS[0],
        "channel_mult": [width // sd15.UNET_WIDTHS[0] for width in sd15.UNET_WIDTHS],
        "context_dim": sd15.CONTEXT_WIDTH,
    }
    config = comfy.supported_models.SD15(unet_config)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    device = comfy.model_management.get_torch_device()
    names = comfy.utils.unet_to_diffusers(unet_config)
    layers = model.diffusion_model.state_dict()
    shapes = {name: tuple(layers[key].shape) for name, key in names.items() if key in layers}
    drawn = random_tensors(shapes, seed, device)
    loaded = model.diffusion_model.load_state_dict({names[name]: tensor.to(dtype).cpu() for name, tensor in drawn})
    assert not loaded.missing_keys
    return manage(model, device, torch.device("cpu"))


def random_adapter() -> LoadedAdapter:
    """A full-size adapter with random weights in fp16, as a file would give it."""
    torch.manual_seed(1)
    config = FlexIPConfig()
    tensors = {key: value.half() for key, value in FlexIPAdapter(config).state_dict().items()}
    return manage_adapter(AdapterInfo(config, False), tensors, "random weights")


def sampling(loaded: LoadedAdapter, size: int, steps: int, rounds: int) -> list[Row]:
    """A guided run of `steps` steps, patched against unpatched, projection of keys and values included."""
    model = random_model()
    patched = apply_adapter(model, Applied(loaded, gamma_tensor(0.5)))
    text = torch.randn(2, 1, sd15.TEXT_LENGTH, sd15.CONTEXT_WIDTH)
    p = torch.randn(1, loaded.adapter.preservation_tokens, sd15.CONTEXT_WIDTH)
    cls = torch.zeros(1, loaded.adapter.config.clip_width)
    positive, negative = (attach(loaded, [[t, {}]], p, cls) for t in text)
    latent = torch.zeros(1, sd15.LATENT_CHANNELS, size // sd15.LATENT_FACTOR, size // sd15.LATENT_FACTOR)
    noise = comfy.sample.prepare_noise(latent, 0)

    def run(which: comfy.model_patcher.ModelPatcher) -> Callable[[], object]:
        return lambda: comfy.sample.sample(
            which, noise, steps, 7.5, "ddim", "normal", positive, negative, latent, disable_pbar=True, seed=0
        )

    what = f"ComfyUI: a run of {steps} steps at {size} px, guidance batch 2, patched against unpatched"
    row = compare(what, run(patched), run(model), rounds=rounds, goal="≤ 1.02")
    apply = alone(
        "ComfyUI: Apply FlexIP",
        lambda: apply_adapter(model, Applied(loaded, gamma_tensor(0.5))),
        rounds=rounds * 4,
        goal="< 50 ms",
    )
    return [row, apply, clones(patched)]


def clones(patched: comfy.model_patcher.ModelPatcher) -> Row:
    """Resident memory that ten clones of a patched model add."""
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    kept = [patched.clone() for _ in range(CLONES)]
    grown = (process.memory_info().rss - before) / 1e6
    return Row(f"ComfyUI: memory of {len(kept)} clones of a patched model", grown, None, None, None, "MB", "≤ 1 MB")


def encoding(loaded: LoadedAdapter, files: Path, rounds: int) -> list[Row]:
    """Both full-size encoders on one picture, and the tokens from its features."""
    managed = manage_encoders(Encoders(load_clip(files / "clip.safetensors"), load_dino(files / "dino.safetensors")))
    picture = torch.rand(1, 512, 512, 3)
    features, null = encode_features(managed, managed.encoders.look(picture), FlexIPAdapter)

    def afresh() -> None:
        managed.recent.clear()
        encode_features(managed, managed.encoders.look(picture), FlexIPAdapter)

    return [
        alone("ComfyUI: both encoders on one picture", afresh, rounds=rounds),
        alone("ComfyUI: P from its features, and the null P", lambda: embed(loaded, features, null), rounds=rounds),
    ]


def results(size: int, rounds: int, import_seconds: float) -> Iterator[dict[str, Any]]:
    """All rows, as dictionaries."""
    started = time.perf_counter()
    loaded = random_adapter()
    rows = [Row("ComfyUI: import of the pack", import_seconds * 1e3, None, None, None, "ms", "< 300 ms")]
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        write_encoders(files / "clip.safetensors", files / "dino.safetensors")
        rows += encoding(loaded, files, rounds)
    rows += sampling(loaded, size, 4, rounds)
    print(f"measured for {time.perf_counter() - started:.0f} s", flush=True)
    yield from map(dataclasses.asdict, rows)
