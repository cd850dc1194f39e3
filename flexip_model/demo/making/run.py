"""A stage's training: steps in turn until its time is over or the leg's, with a log and a state on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...common.errors import FlexIPError
from ...common.signals import StopRequest, noted_stop
from ...files.safefile import atomic, load_tensors, write_tensors
from .stepper import Pace, Stepper

log = logging.getLogger(__name__)

LOG_EVERY = 5.0
"""Seconds between two entries of the log."""
SAVE_EVERY = 300.0
"""Seconds between two states on disk."""
WAIT_EVERY = 8
"""Turns after which the processor waits for the card, so that the time that is told is the time that was spent."""
RECORD = "run.json"


class Run:
    """Steppers that take their steps in turn.

    Args:
        name: the folder's, in `work`; its state is gone on from.
        steppers: by name; each is given the same share of steps.
        refill: writes the next step's inputs; it is told how many turns there were. The random numbers that it draws
            are the same at a turn, whichever leg that is in.
        pace: its seconds and steps say when the run ends.
        deadline: when the leg ends, of `time.monotonic`.
    """

    def __init__(
        self,
        name: str,
        work: Path,
        steppers: Mapping[str, Stepper],
        refill: Callable[[int], None],
        *,
        pace: Pace,
        deadline: float,
    ) -> None:
        self.name, self.folder, self.steppers = name, work / name, dict(steppers)
        self._refill, self.pace, self.deadline = refill, pace, deadline
        self.spent, self.turns = 0.0, 0
        self.history: list[dict[str, Any]] = []
        self._states = "states-a"
        path = self.folder / RECORD
        if path.exists():
            told = json.loads(path.read_text(encoding="utf-8"))
            self.spent, self.turns, self.history = told["spent"], told["turns"], told["history"]
            self._states = told["states"]
            for key, stepper in self.steppers.items():
                stepper.load(load_tensors(self._state(key)), told["steps"][key])

    @property
    def progress(self) -> float:
        """The share of the run that is done, 1 at its end."""
        return min(1.0, max(self.spent / self.pace.seconds, self.turns / self.pace.steps))

    def go(self) -> bool:
        """Train until the run is over; False if the leg ended first.

        Raises:
            SystemExit: by Ctrl-C or SIGTERM, after the state was written.
            FlexIPError: a loss is not a number.
        """
        with noted_stop(second_ends=True) as asked:
            self._train(asked)
            self.save()
        if asked.number:
            log.info(f"{self.name}: stopped by signal {asked.number}; the same command goes on from here")
            raise SystemExit(128 + asked.number)
        return self.progress >= 1

    def _train(self, asked: StopRequest) -> None:
        begun = logged = saved = time.monotonic()
        before, steps = self.spent, self._steps()
        on_card = self.device.type == "cuda"
        pool = torch.cuda.graph_pool_handle() if on_card else None
        while (progress := self.progress) < 1 and time.monotonic() < self.deadline and not asked.number:
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"{self.name} {self.turns}".encode()).digest()[:4], "big"))
            self._refill(self.turns)
            for stepper in self.steppers.values():
                if progress < stepper.pace.until:
                    stepper.step(progress, pool)
            self.turns += 1
            if on_card and self.turns % WAIT_EVERY == 0:
                torch.cuda.synchronize()
            now = time.monotonic()
            self.spent = before + now - begun
            if now - logged > LOG_EVERY or self.progress >= 1:
                self._log(now - logged, steps)
                logged, steps = now, self._steps()
            if now - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()

    @property
    def device(self) -> torch.device:
        return next(iter(self.steppers.values())).device

    def _steps(self) -> dict[str, int]:
        return {key: stepper.steps for key, stepper in self.steppers.items()}

    def _log(self, seconds: float, before: Mapping[str, int]) -> None:
        for key, stepper in self.steppers.items():
            taken = stepper.steps - before[key]
            if not taken:
                continue
            means = {name: round(value / taken, 5) for name, value in stepper.take_sums().items()}
            if not all(math.isfinite(value) for value in means.values()):
                raise FlexIPError(
                    f"{self.name}: the loss of {key} is not a number at step {stepper.steps}; what was written before "
                    "is kept, try again with a lower lr in --plan"
                )
            speed = round(taken * stepper.pace.batch / seconds, 1)
            self.history.append({"of": key, "step": stepper.steps, "spent": round(self.spent, 1), **means})
            told = f"{self.name} {self.progress:.0%}, {self.spent:.0f} s, {key} {stepper.steps}"
            log.info(f"{told} {means} {speed} samples/s")

    def _state(self, key: str) -> Path:
        return self.folder / self._states / f"{key}.safetensors"

    def save(self) -> None:
        """Write the states beside the ones before; the record, written last, tells which of the two are whole."""
        self._states = "states-b" if self._states == "states-a" else "states-a"
        for key, stepper in self.steppers.items():
            write_tensors(self._state(key), stepper.state(), {"format": "pt"})
        told = {
            "spent": round(self.spent, 3),
            "turns": self.turns,
            "steps": self._steps(),
            "batch": {key: stepper.pace.batch for key, stepper in self.steppers.items()},
            "states": self._states,
            "history": self.history,
        }
        with atomic(self.folder / RECORD) as path:
            path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def steps_of(work: Path, name: str) -> dict[str, dict[str, int]]:
    """Steps and batch of a run's networks."""
    told = json.loads((work / name / RECORD).read_text(encoding="utf-8"))
    return {key: {"steps": steps, "batch": told["batch"][key]} for key, steps in told["steps"].items()}
