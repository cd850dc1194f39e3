"""Training that keeps a device busy: the whole step as one CUDA graph, paced by time.

A network this small leaves a card idle between its thousands of kernels; a graph starts them all at once. On a
processor the same step runs as it is.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...common.errors import FlexIPError
from ...files.safefile import load_tensors, write_tensors

log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]
WARM_UP = 3
"""Steps before the graph is taken, as PyTorch asks for."""
LOG_EVERY = 5.0
"""Seconds between two entries of the log."""
WAIT_EVERY = 8
"""Turns after which the processor waits for the card, so that the time that is told is the time that was spent."""


@dataclass(frozen=True)
class Pace:
    """How a network is trained in a given time.

    Attributes:
        seconds: of training, over all legs.
        batch: samples of a step.
        lr: the highest learning rate; it rises over `warmup` steps and falls as half a cosine wave from the share
            `decay_from` of the time on.
        until: the share of the time after which it ends, where several train in turn.
        ema: what the averaged weights keep at a step.
        clip_norm, weight_decay, betas: of AdamW.
    """

    seconds: float
    batch: int
    lr: float = 1e-3
    warmup: int = 200
    decay_from: float = 0.4
    until: float = 1.0
    ema: float = 0.999
    clip_norm: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)

    def rate(self, step: int, progress: float) -> float:
        """The learning rate at a step and at a share of the time, 0 to 1."""
        fallen = max(0.0, progress / self.until - self.decay_from) / (1 - self.decay_from)
        return self.lr * min(1.0, (step + 1) / self.warmup) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, fallen)))


class Stepper:
    """One network's optimizer, averaged weights and step.

    Args:
        named: the trained parameters by name.
        loss: the static inputs to named losses; "loss" is minimized. It may not ask the device for a value.
        inputs: tensors of the inputs' shapes on the device; every step's are copied into these, or `share` is told.
        bf16: whether the loss is computed under autocast to bfloat16.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        loss: Callable[[Tensors], Tensors],
        inputs: dict[str, Tensor],
        pace: Pace,
        *,
        bf16: bool = True,
    ) -> None:
        self.named, self.pace, self.inputs = dict(named), pace, inputs
        self._loss, self._bf16 = loss, bf16
        self.weights: list[nn.Parameter] = list(self.named.values())
        self.device = self.weights[0].device
        self.averaged = [w.detach().clone() for w in self.weights]
        self._rate = torch.zeros((), device=self.device)
        self._keep = torch.zeros((), device=self.device)
        self._zero = torch.zeros((), device=self.device)
        on_card = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=self._rate,
            betas=pace.betas,
            weight_decay=pace.weight_decay,
            capturable=on_card,
            fused=on_card or None,
        )
        self.steps = self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self.sums: dict[str, Tensor] = {}

    def step(self, progress: float, pool: object = None) -> None:
        """One step on what lies in `inputs`, at a share of the time."""
        self._rate.fill_(self.pace.rate(self.steps, progress))
        self._keep.fill_(1 - min(self.pace.ema, (1 + self.steps) / (10 + self.steps)))
        if self._graph is not None:
            self._graph.replay()
        elif self.device.type != "cuda":
            self._compute()
        elif self._warm < WARM_UP:
            self._warm += 1
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._compute()
            torch.cuda.current_stream().wait_stream(side)
        else:
            self._capture(pool)
        self.steps += 1

    def _capture(self, pool: object) -> None:
        """Take the step's graph and run it. A step that cannot be taken runs as it is from then on, and says so."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph, pool=pool):
                self._compute()
        except RuntimeError as error:
            log.warning(f"no graph of this step, it runs as it is: {str(error).strip().splitlines()[0]}")
            self._warm = -sys.maxsize
            torch.cuda.synchronize()
            self._compute()
            return
        self._graph = graph
        graph.replay()

    def _compute(self) -> None:
        torch._foreach_zero_([weight.grad for weight in self.weights if weight.grad is not None] or [self._zero])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False):
            losses = self._loss(self.inputs)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.weights, self.pace.clip_norm, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            away = torch._foreach_sub([w.data for w in self.weights], self.averaged)
            torch._foreach_mul_(away, self._keep)
            torch._foreach_add_(self.averaged, away)
            for name, value in losses.items():
                if name not in self.sums:
                    self.sums[name] = torch.zeros((), device=self.device)
                self.sums[name] += value.detach().float()

    def take_sums(self) -> dict[str, float]:
        """The losses' sums since the last call."""
        found = {name: float(value) for name, value in self.sums.items()}
        for value in self.sums.values():
            value.zero_()
        return found

    @torch.no_grad()
    def average(self) -> dict[str, Tensor]:
        """The averaged weights by name, copies on the CPU in float32."""
        return {name: value.cpu().contiguous() for name, value in zip(self.named, self.averaged, strict=True)}

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the network; training ends here."""
        for weight, value in zip(self.weights, self.averaged, strict=True):
            weight.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Everything that going on needs, on the CPU."""
        found = {}
        for name, weight, averaged in zip(self.named, self.weights, self.averaged, strict=True):
            moments = self.optimizer.state.get(weight, {})
            parts = {"weight": weight, "averaged": averaged, **moments}
            found |= {
                f"{part}|{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for part, value in parts.items()
            }
        return found

    @torch.no_grad()
    def load(self, found: Mapping[str, Tensor], steps: int) -> None:
        """Go on from a `state` after so many steps."""
        for name, weight, averaged in zip(self.named, self.weights, self.averaged, strict=True):
            weight.copy_(found[f"weight|{name}"])
            averaged.copy_(found[f"averaged|{name}"])
            if f"exp_avg|{name}" in found:
                moments = {part: found[f"{part}|{name}"] for part in ("exp_avg", "exp_avg_sq", "step")}
                on_card = self.device.type == "cuda"
                self.optimizer.state[weight] = {
                    part: value.clone().to(self.device if on_card or part != "step" else "cpu")
                    for part, value in moments.items()
                }
        self.steps = steps


class Run:
    """Steppers that take their steps in turn until their time is over or the leg's, with a log and a state on disk.

    Args:
        name: the folder's, in `work`.
        steppers: by name; each is given the same share of steps.
        refill: writes the next step's inputs.
        deadline: when the leg ends, of `time.monotonic`.
    """

    def __init__(
        self,
        name: str,
        work: Path,
        steppers: Mapping[str, Stepper],
        refill: Callable[[], None],
        *,
        seconds: float,
        deadline: float,
    ) -> None:
        self.name, self.folder, self.steppers = name, work / name, dict(steppers)
        self._refill, self.seconds, self.deadline = refill, seconds, deadline
        self.spent, self.history = 0.0, []  # type: ignore[var-annotated]
        path = self.folder / "run.json"
        if path.exists():
            told = json.loads(path.read_text(encoding="utf-8"))
            self.spent, self.history = told["spent"], told["history"]
            for key, stepper in self.steppers.items():
                stepper.load(load_tensors(self.folder / f"{key}.state.safetensors"), told["steps"][key])

    @property
    def done(self) -> bool:
        return self.spent >= self.seconds

    def go(self) -> bool:
        """Train until the time is over; False if the leg ended first."""
        begun, logged, pool = time.monotonic(), time.monotonic(), None
        steps_logged = {key: s.steps for key, s in self.steppers.items()}
        if self.device.type == "cuda":
            pool = torch.cuda.graph_pool_handle()
        before, turns = self.spent, 0
        while not self.done and time.monotonic() < self.deadline:
            progress = self.spent / self.seconds
            self._refill()
            for stepper in self.steppers.values():
                if progress < stepper.pace.until:
                    stepper.step(progress, pool)
            turns += 1
            if self.device.type == "cuda" and turns % WAIT_EVERY == 0:
                torch.cuda.synchronize()
            self.spent = before + time.monotonic() - begun
            if time.monotonic() - logged > LOG_EVERY or self.done:
                self._log(time.monotonic() - logged, steps_logged)
                logged, steps_logged = time.monotonic(), {key: s.steps for key, s in self.steppers.items()}
        self.save()
        return self.done

    @property
    def device(self) -> torch.device:
        return next(iter(self.steppers.values())).device

    def _log(self, seconds: float, before: Mapping[str, int]) -> None:
        for key, stepper in self.steppers.items():
            taken = stepper.steps - before[key]
            if not taken:
                continue
            means = {name: round(value / taken, 5) for name, value in stepper.take_sums().items()}
            if not all(math.isfinite(value) for value in means.values()):
                raise FlexIPError(f"{self.name}: the loss of {key} is not a number at step {stepper.steps}")
            speed = round(taken * stepper.pace.batch / seconds, 1)
            self.history.append({"of": key, "step": stepper.steps, "spent": round(self.spent, 1), **means})
            told = f"{self.name} {self.spent:.0f}/{self.seconds:.0f} s {key} {stepper.steps}"
            log.info(f"{told} {means} {speed} samples/s")

    def save(self) -> None:
        """Write the states; a later leg goes on from them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for key, stepper in self.steppers.items():
            write_tensors(self.folder / f"{key}.state.safetensors", stepper.state(), {"format": "pt"})
        told = {
            "spent": self.spent,
            "steps": {key: s.steps for key, s in self.steppers.items()},
            "batch": {key: s.pace.batch for key, s in self.steppers.items()},
            "history": self.history,
        }
        (self.folder / "run.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def steps_of(work: Path, name: str) -> dict[str, dict[str, int]]:
    """Steps and batch of a run's networks."""
    told = json.loads((work / name / "run.json").read_text(encoding="utf-8"))
    return {key: {"steps": steps, "batch": told["batch"][key]} for key, steps in told["steps"].items()}


def copy_into(target: dict[str, Tensor], source: Tensors) -> None:
    """Copy a step's inputs into the static ones."""
    for name, value in source.items():
        target[name].copy_(value, non_blocking=True)


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of a module by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
