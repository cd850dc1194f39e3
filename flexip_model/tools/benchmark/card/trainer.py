"""The trainer on the card: its cached loop against a plain one, and two of its gradients against the CPU's."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....method.adapters import FlexIPAdapter
from ....method.config import FlexIPConfig
from ....train.configs.options import TrainConfig
from ....train.frozen import load_frozen
from ....train.samples.batch import collate
from ....train.start import begin
from ....train.step import TrainStep
from ..arithmetic import full_size, parameters, saved_bytes
from ..estimates import tensors_bytes
from ..plain_loop import Pictures, run_plain
from ..training import WARMUP, contender, measure, prepare_training, run_ours

GOAL = "≥ 1.8"


def training(full: bool, size: int, batch: int, steps: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Samples per second with cached latents and [CLS] and of a plain loop, in turn; memory against the estimate."""
    with tempfile.TemporaryDirectory(prefix="flexip-card-") as folder:
        config = _config(Path(folder), full, size, batch)
        plain = contender("plain loop", lambda: run_plain(config, WARMUP, steps))
        cached = contender("cached latents and [CLS]", lambda: run_ours(config, steps, use_cache=True))
        label = f"{size} px, batch {batch}, {config.precision}"
        for number in range(rounds):
            for one in (cached, plain) if number % 2 == 0 else (plain, cached):
                measure(one)
                yield {
                    "training": f"{label}: {one.name}, round {number + 1}",
                    "samples/s": one.speeds[-1],
                    "time without a batch, %": one.waits[-1] * 100,
                    "peak of tensors, GB": one.memory[-1] / 1e9 or None,
                }
            ratio = cached.speeds[-1] / plain.speeds[-1]
            yield {"training": f"{label}: cached against plain, round {number + 1}", "ratio": ratio, "goal": GOAL}
            if full and number == 0:
                yield {"training": f"{label}: what the estimate says", "peak of tensors, GB": _estimate(size, batch)}


def gradients(size: int, batch: int, device: str) -> Iterator[dict[str, Any]]:
    """Two steps of the small model on the device and on the CPU, fp32 without TF32, from the same samples."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory(prefix="flexip-card-") as folder:
        config = replace(_config(Path(folder), False, size, batch), precision="fp32")
        there, here = (_gradients(config, torch.device(name)) for name in (device, "cpu"))
    for step, (ours, theirs) in enumerate(zip(there, here, strict=True), 1):
        found = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs}
        worst = max(found, key=lambda name: found[name])
        whole = sum(float((ours[name] - theirs[name]).pow(2).sum()) for name in theirs) ** 0.5
        yield {
            "gradients": f"step {step}, small model, {size} px, batch {batch}, fp32: {len(found)} tensors",
            "largest difference of a tensor, of its norm": found[worst],
            "in": worst,
            "of all, of their norm": whole / sum(float(theirs[name].pow(2).sum()) for name in theirs) ** 0.5,
        }


def _config(folder: Path, full: bool, size: int, batch: int) -> TrainConfig:
    options = argparse.Namespace(base=None, clip=None, dino=None, data=None, workers=None, size=size, batch=batch)
    options.model = "sd15" if full else "demo"
    return prepare_training(folder, options)


def _gradients(config: TrainConfig, device: torch.device) -> list[dict[str, Tensor]]:
    """The gradients of each of two steps, float32 on the CPU; those that are zero throughout are left out."""
    frozen = load_frozen(config)
    adapter = begin(config, frozen).to(device)
    frozen.to(device, torch.float32)
    model = TrainStep(adapter, frozen, None, 0.0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=config.lr)
    pictures = Pictures(config, frozen)
    torch.manual_seed(config.seed)
    batches = [collate([pictures[number] for number in range(config.batch)]) for _ in range(2)]
    found = []
    for batch in batches:
        optimizer.zero_grad()
        model(batch.to(device)).mean().backward()
        grads = {name: p.grad.detach().cpu().clone() for name, p in adapter.named_parameters() if p.grad is not None}
        found.append({name: grad for name, grad in grads.items() if grad.any()})
        optimizer.step()
    return found


def _estimate(size: int, batch: int) -> float:
    """GB of the trainer's tensors, as `benchmark scale` computes them."""
    with torch.device("meta"):
        adapter = FlexIPAdapter(FlexIPConfig())
    return tensors_bytes(*parameters(full_size(), adapter), saved_bytes(size), batch) / 1e9
