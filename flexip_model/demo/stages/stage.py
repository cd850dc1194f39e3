"""A stage of the small model: the trainer's loop around one step function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...common.errors import FlexIPError
from ...train.shared import state
from ...train.shared.loop import Loop
from .recipe import Plan

Losses = Mapping[str, Tensor]
StepFn = Callable[[np.random.Generator], Losses]


class _Step(nn.Module):
    def __init__(self, module: nn.Module, step: StepFn) -> None:
        super().__init__()
        self.module, self.step = module, step

    def forward(self, rng: np.random.Generator) -> Losses:
        return self.step(rng)


class Stage(Loop[nn.Module]):
    """Trains one module of the small model.

    Pictures are drawn from `default_rng((seed, step, process))`, so a resumed run sees the data that the
    uninterrupted run would have seen.

    Args:
        module: everything that is trained, in one module; frozen parts stay outside.
        step: draws a batch with the generator that it gets and returns named losses; "loss" is minimized.
        folder: its checkpoints are continued; its name is the stage's.

    Attributes:
        history: means of the losses since the entry before, per entry of the log.
    """

    def __init__(self, module: nn.Module, step: StepFn, plan: Plan, folder: Path) -> None:
        super().__init__(_Step(module, step), module, plan, folder)
        self.seed = plan.seed
        self.history: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._counted = 0

    def work(self) -> None:
        """All steps."""
        self.trained.train()
        self.until(self.pace.steps, self._generators())

    def _generators(self) -> Iterator[np.random.Generator]:
        while True:
            yield np.random.default_rng((self.seed, self.step, self.rank))

    def loss(self, batch: np.random.Generator) -> Tensor:
        losses = self.model(batch)
        for key, value in losses.items():
            self._sums[key] = self._sums.get(key, 0.0) + float(value.detach())
        self._counted += 1
        return losses["loss"]

    def log(self) -> None:
        """Keep and print an entry."""
        entry = {key: round(value / self._counted, 5) for key, value in self._sums.items()}
        self._sums, self._counted = {}, 0
        self.history.append({"step": self.step, **entry})
        self.say(f"{self.folder.name} {self.step}/{self.pace.steps} {entry} lr {self.learning_rate():.2e}")

    def info(self) -> dict[str, Any]:
        return {"history": self.history, "world": self.world_size}

    def restore(self, found: state.Checkpoint) -> None:
        super().restore(found)
        self.history = found.info["history"]


def train(module: nn.Module, step: StepFn, plan: Plan, folder: Path) -> Stage:
    """Train `module` for the plan's steps, from the newest checkpoint in `folder` if there is one; on return it
    holds the averaged weights, in eval mode.

    Raises:
        FlexIPError: as `Loop.run`.
    """
    stage = Stage(module, step, plan, folder)
    stage.run()
    stage.ema.copy_to(module.parameters())
    module.eval()
    return stage


def device_of(module: nn.Module) -> torch.device:
    """Where a stage's module computes: what a step draws goes there."""
    return next(module.parameters()).device


def newest(folder: Path) -> state.Checkpoint:
    """A stage's newest checkpoint.

    Raises:
        FlexIPError: there is none that is whole.
    """
    found, complaints = state.load_newest(folder / "checkpoints")
    if found is None:
        reason = "; ".join(complaints) or f"{folder} has no checkpoint"
        raise FlexIPError(f"{reason}: run the stage `{folder.name}` first")
    return found


def load_averaged(module: nn.Module, folder: Path) -> nn.Module:
    """The averaged weights of a stage's newest checkpoint, in eval mode and frozen."""
    averaged = newest(folder).parts["ema"]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(averaged[name])
    return module.eval().requires_grad_(False)
