"""What a step costs in diffusers on the card: eager and compiled, against unpatched and diffusers' own IP-Adapter."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ....method.adapters import Adapter, create_adapter
from ..in_diffusers import FLEXIP, UNPATCHED, drawn_unet, step_calls
from ..timing import in_turn
from .inputs import DEMO, adapter_tensors


def steps(
    full: bool, size: int, dtype: str, batches: list[int], repeats: int, rounds: int, device: str
) -> Iterator[dict[str, Any]]:
    """FlexIP and IP-Adapter against the unpatched UNet, eager."""
    unet, adapter = _models(full, dtype, device)
    for batch in batches:
        calls = step_calls(unet, adapter, size // 8, batch, repeats)
        label = f"diffusers, {size} px, batch {batch}, {dtype}"
        yield from ratios(label, calls, UNPATCHED, rounds, repeats)


def compiled(
    full: bool, size: int, dtype: str, batch: int, repeats: int, rounds: int, device: str, whole: bool
) -> Iterator[dict[str, Any]]:
    """FlexIP against unpatched, both compiled: the UNet's repeated blocks, or with `whole` all of it."""
    # Each attention layer is code of its own to the compiler, and it gives up after eight.
    torch._dynamo.config.recompile_limit = 128
    unet, adapter = _models(full, dtype, device)
    if not whole:
        unet.compile_repeated_blocks()
    made = step_calls(unet, adapter, size // 8, batch, repeats, torch.compile(unet) if whole else unet)
    calls = {name: made[name] for name in (UNPATCHED, FLEXIP)}
    how = "the UNet compiled" if whole else "its repeated blocks compiled"
    label = f"diffusers, {size} px, batch {batch}, {dtype}, {how}"
    for name, call in calls.items():
        began = time.perf_counter()
        call()
        yield {"step": f"{label}: the first {repeats} steps of {name}", "ms": (time.perf_counter() - began) * 1e3}
    yield from ratios(label, calls, UNPATCHED, rounds, repeats)


def ratios(
    label: str, calls: Mapping[str, Callable[[], object]], baseline: str, rounds: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """Each against the baseline: medians of ms per step, and of the rounds' own ratios."""
    times = in_turn(calls, rounds)
    milliseconds = {name: statistics.median(values) / repeats * 1e3 for name, values in times.items()}
    for name, values in times.items():
        if name == baseline:
            continue
        found = [a / b for a, b in zip(values, times[baseline], strict=True)]
        yield {
            "step": f"{label}: {name} against {baseline}",
            "ms": milliseconds[name],
            "compared with, ms": milliseconds[baseline],
            "ratio": statistics.median(found),
            "lowest": min(found),
            "highest": max(found),
        }


def _models(full: bool, dtype: str, device: str) -> tuple[Any, Adapter]:
    where, kind = torch.device(device), getattr(torch, dtype)
    config, tensors = adapter_tensors("sd15" if full else "demo")
    adapter = create_adapter(config).eval().requires_grad_(False)
    adapter.load_state_dict(tensors)
    if full:
        return drawn_unet(where, kind), adapter.to(where, kind)
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(DEMO / "unet").eval().requires_grad_(False)
    return unet.to(where, kind), adapter.to(where, kind)
