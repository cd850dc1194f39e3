"""A small training loop shared by every stage: fused AdamW, EMA, logs, resumable state.

Pictures are drawn from ``default_rng((seed, step, process))``, so a resumed run sees the data that the uninterrupted
run would have seen. Where ``torch.distributed`` is initialised, gradients are averaged over its processes, each of
which draws its own part of the batch: at these sizes two processes of one thread are nearly twice as fast as two
threads.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Losses = Mapping[str, Tensor]
_LONGEST_STEP = 10.0
"""Seconds that one step counts at most, so that a machine that slept does not eat the budget."""
StepFn = Callable[[np.random.Generator], Losses]


@dataclass
class Plan:
    """How long and how a stage trains.

    Attributes:
        minutes: wall-clock budget over all runs of the stage; the learning rate falls to zero at its end.
        steps: if given, the budget in optimizer steps instead (reproducible; minutes are not).
        lr: peak learning rate, after ``warmup`` steps; cosine decay to 2 % of it.
        ema: decay of the averaged weights, which are what a stage hands on; it warms up as (1 + n) / (10 + n).
    """

    minutes: float
    steps: int | None = None
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0
    save_every_s: float = 120.0
    log_every: int = 50
    decay_from: float = 0.0
    """Share of the budget at full learning rate before the cosine begins."""


@dataclass
class Progress:
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def ema_state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def _save(folder: Path, module: nn.Module, averaged: dict[str, Tensor], optimizer: torch.optim.Optimizer,
          progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v.contiguous() for k, v in module.state_dict().items()}
    tensors |= {f"ema.{k}": v.contiguous() for k, v in averaged.items()}
    for index, slot in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v).clone() for k, v in slot.items()}
    part = folder / "state.safetensors.part"
    save_file(tensors, part, metadata={"step": str(progress.step), "seconds": str(progress.seconds)})
    part.replace(folder / "state.safetensors")
    (folder / "log.json").write_text(json.dumps(progress.history))


def _resume(folder: Path, module: nn.Module, averaged: dict[str, Tensor],
            optimizer: torch.optim.Optimizer) -> Progress:
    from safetensors import safe_open

    path = folder / "state.safetensors"
    if not path.exists():
        return Progress()
    with safe_open(path, "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(path)
    module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    averaged.update({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    log = folder / "log.json"
    history = json.loads(log.read_text()) if log.exists() else []
    return Progress(int(metadata["step"]), float(metadata["seconds"]), history)


def _groups(module: nn.Module, weight_decay: float) -> list[dict]:
    decay = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _average(module: nn.Module, progress: Progress) -> None:
    """Give all processes the mean gradient, and the mean clock, so that they stop at the same step."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    flat = torch.cat([*(p.grad.reshape(-1) for p in parameters if p.grad is not None),
                      torch.tensor([progress.seconds])])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    progress.seconds = float(flat[-1])
    start = 0
    for p in parameters:
        p.grad = flat[start : start + p.numel()].view_as(p)
        start += p.numel()


def train(name: str, module: nn.Module, step: StepFn, plan: Plan, folder: Path) -> Progress:
    """Train ``module`` until the plan's budget is spent; on return it holds the averaged weights.

    Args:
        module: everything that is trained, in one module; frozen parts stay outside.
        step: draws a batch with the generator that it gets and returns named losses; "loss" is minimised.
        folder: receives ``state.safetensors`` (weights, average, optimizer) and ``log.json``; an existing state is
            continued.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(_groups(module, plan.weight_decay), lr=plan.lr, betas=plan.betas, fused=True)
    averaged = ema_state(module)
    progress = _resume(folder, module, averaged, optimizer)
    last_step, last_save = time.monotonic(), time.monotonic()
    sums: dict[str, float] = {}
    module.train()
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    first = rank == 0

    def share() -> float:
        return progress.step / plan.steps if plan.steps else progress.seconds / (60 * plan.minutes)

    while share() < 1:
        falling = max(0.0, (share() - plan.decay_from) / (1 - plan.decay_from))
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * falling))
        rate = plan.lr * min(1, (progress.step + 1) / plan.warmup) * cosine
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = step(np.random.default_rng((plan.seed, progress.step, rank)))
        loss = losses["loss"]
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {progress.step}")
        loss.backward()
        progress.seconds += min(time.monotonic() - last_step, _LONGEST_STEP)
        last_step = time.monotonic()
        if distributed.is_initialized():
            _average(module, progress)
        nn.utils.clip_grad_norm_(module.parameters(), plan.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        if not first:
            continue
        decay = min(plan.ema, (1 + progress.step) / (10 + progress.step))
        with torch.no_grad():
            current = module.state_dict()
            floats = [k for k, v in averaged.items() if v.is_floating_point()]
            torch._foreach_lerp_([averaged[k] for k in floats], [current[k] for k in floats], 1 - decay)
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        if progress.step % plan.log_every == 0:
            entry = {k: round(v / plan.log_every, 5) for k, v in sums.items()}
            sums = {}
            progress.history.append({"step": progress.step, "seconds": round(progress.seconds, 1), **entry})
            print(f"{name} {share():6.1%} {progress.history[-1]} lr {rate:.2e}", flush=True)
        if time.monotonic() - last_save > plan.save_every_s:
            _save(folder, module, averaged, optimizer, progress)
            last_save = time.monotonic()
    if first:
        _save(folder, module, averaged, optimizer, progress)
    module.load_state_dict(averaged)
    module.eval()
    return progress


def load_averaged(module: nn.Module, folder: Path) -> nn.Module:
    """The averaged weights of a stage's newest state, in eval mode and frozen."""
    tensors = load_file(folder / "state.safetensors")
    module.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    return module.eval().requires_grad_(False)
