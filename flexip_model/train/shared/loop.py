"""The loop under `trainer.Trainer`: accelerate underneath, one optimizer, averaged weights, exact checkpoints."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ...common.errors import FlexIPError
from ...common.signals import StopRequest, noted_stop
from . import state
from .lock import locked
from .optimizers import make_optimizer, parameter_groups, restored, unshared

log = logging.getLogger(__name__)

BAD_STEPS = 20
"""Steps without a finite gradient in a row at which a run stops (our choice)."""
Trained = TypeVar("Trained", bound=nn.Module)


class Pace(Protocol):
    """How fast and how far a loop goes; `TrainConfig` says what each means."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def warmup(self) -> int: ...
    @property
    def schedule(self) -> str: ...
    @property
    def decay_from(self) -> float: ...
    @property
    def clip_norm(self) -> float: ...
    @property
    def ema(self) -> float: ...
    @property
    def accumulation(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def keep(self) -> int: ...
    @property
    def log_every(self) -> int: ...


class Loop(Generic[Trained]):
    """A training: its weights, their optimizer, and how far it has come.

    Args:
        model: is called with a batch; `loss` reads its output. It may hold frozen parts as plain attributes.
        trained: the part of `model` whose weights are trained, averaged and saved; frozen ones are only saved.
        pace: how fast and how far it goes.
        folder: receives `checkpoints`.
        optimizer: its name, as `make_optimizer` knows it.

    Attributes:
        rank, world_size: of this process, among all of them.
        ema: the averaged weights.
        step: optimizer steps so far, skipped ones included.
        skipped: steps without a finite gradient so far; `bad` counts those of the latest row.
    """

    def __init__(self, model: nn.Module, trained: Trained, pace: Pace, folder: Path, optimizer: str = "adamw") -> None:
        from accelerate import Accelerator
        from diffusers.training_utils import EMAModel

        # The config decides the precision, not how the run was launched.
        self.accelerator = Accelerator(mixed_precision="no")
        self.pace, self.folder, self.trained = pace, folder, trained
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.model: nn.Module = self.accelerator.prepare_model(model)
        self.optimizer = make_optimizer(
            optimizer, parameter_groups(trained, pace.weight_decay), pace.lr, pace.betas, self.accelerator.device
        )
        self.ema = EMAModel(trained.parameters(), decay=pace.ema)
        self.step, self.skipped, self.bad = 0, 0, 0
        self._asked, self._stopped_by, self._saved = StopRequest(), 0, 0
        # Whether weights, averages and optimizer are those of `step`, so that they can be saved.
        self._whole = True

    def work(self) -> None:
        """Train to the end, by calls of `until`."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """The mean loss of a batch, ()."""
        raise NotImplementedError

    def info(self) -> dict[str, Any]:
        """The fields that a checkpoint holds beside tensors, as JSON; `restore` gets them back."""
        return {}

    def spared(self) -> Collection[int]:
        """Steps whose checkpoints stay, however old."""
        return ()

    def log(self) -> None:
        """Make an entry of the log: it is called every `log_every` steps, and after the last."""

    def stepped(self) -> None:
        """Do what a step asks for; it is called once the step's checkpoint, if any, is written."""

    def gradients(self, norm: float) -> None:
        """Look at the gradients; it is called before a step, with their norm over all weights."""

    def leave_out(self) -> None:
        """Set the gradients of weights to None that are to stay as they are; it is called before a step."""

    def fetch(self, batches: Iterator[Any]) -> Any:
        """The next batch, on the device."""
        return next(batches)

    def say(self, sentence: str) -> None:
        """Log a sentence once, in the first process."""
        if self.is_main_process:
            log.info(sentence)

    def close(self) -> None:
        """Let go of what is open; it is called at the end, however it came."""

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and speaks."""
        return bool(self.accelerator.is_main_process)

    @property
    def stopped(self) -> bool:
        """Whether a signal to any process asked the run to end; the same in all of them."""
        return bool(self._stopped_by)

    def stop_now(self) -> bool:
        """End here, between two steps, if a signal asked for it; whether it did. Only a process alone can."""
        if self.world_size == 1 and self._whole and self._asked.number:
            self._stopped_by = self._asked.number
        return self.stopped

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def learning_rate(self) -> float:
        """The next step's: constant (App. B.1 has one rate) or a cosine to a fiftieth, after a warm-up (our choice)."""
        c = self.pace
        rising = min(1.0, (self.step + 1) / c.warmup) if c.warmup else 1.0
        if c.schedule == "constant":
            return c.lr * rising
        falling = max(0.0, (self.step / c.steps - c.decay_from) / (1 - c.decay_from))
        return c.lr * rising * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * falling)))

    def run(self) -> None:
        """Train to the end, from the newest checkpoint in the run's folder if there is one.

        However it ends, the steps that were taken are saved, if they can be.

        Raises:
            FlexIPError: another run works in the folder; what `work` raises, too many steps without a finite gradient,
                no room for a checkpoint, memory that does not suffice; the newest checkpoint is intact in each case.
            SystemExit: after SIGINT or SIGTERM, once a checkpoint is written.
        """
        with locked(self.folder) if self.is_main_process else contextlib.nullcontext():
            self._run()

    def _run(self) -> None:
        self._resume()
        # A processor computes with numbers below 1e-38 many times slower, and the gradients of attention are full of
        # them: without them a step of the small model takes four fifths of the time.
        torch.set_flush_denormal(True)
        try:
            with noted_stop(second_ends=False) as self._asked:
                self.work()
            if self._saved != self.step:
                self.save()
            if self.stopped:
                self.say(
                    f"stopped by signal {int(self._stopped_by)} at step {self.step}; "
                    "the same command goes on from there"
                )
                raise SystemExit(128 + self._stopped_by)
        except BaseException as error:
            self._rescue()
            if not _lacks_memory(error):
                raise
            cause = (str(error) or type(error).__name__).splitlines()[0]
            raise FlexIPError(
                f"memory ran out at step {self.step} ({cause}); the newest checkpoint is intact: "
                "set a smaller batch with more accumulation, or gradient_checkpointing: true, and start it again"
            ) from error
        finally:
            torch.set_flush_denormal(False)
            self.close()

    def until(self, end: int, batches: Iterator[Any]) -> None:
        """Take steps until `end` or a signal."""
        c = self.pace
        while self.step < end and not self.stopped:
            self.update(batches)
            # A signal that comes after this counts after the next step: a process that left alone would hang the rest.
            if self.sum_over_ranks(self._asked.number):
                self._stopped_by = self._asked.number or signal.SIGTERM
            # First, because a checkpoint may hold the log's entries.
            if self.step % c.log_every == 0 or self.step == c.steps:
                self.log()
            # Before what is only to be looked at: a step is worth more than a picture of it.
            if self.stopped or self.step % c.save_every == 0 or self.step == c.steps:
                self.save()
            self.stepped()

    def update(self, batches: Iterator[Any]) -> None:
        """One optimizer step; without a finite loss and gradient the weights stay as they are."""
        c = self.pace
        total = 0.0
        for micro in range(c.accumulation):
            batch = self.fetch(batches)
            last = micro == c.accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.loss(batch) / c.accumulation
                self.accelerator.backward(loss)
            total += float(loss.detach())
        self.leave_out()
        norm = float(nn.utils.clip_grad_norm_(self.trained.parameters(), math.inf))
        finite = self.sum_over_ranks(0 if math.isfinite(norm) and math.isfinite(total) else 1) == 0
        if finite:
            self.gradients(norm)
            nn.utils.clip_grad_norm_(self.trained.parameters(), c.clip_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
            self._whole = False
            self.optimizer.step()
            self.ema.step(self.trained.parameters())
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += not finite
        self.bad = 0 if finite else self.bad + 1
        self.step += 1
        self._whole = True
        if self.bad >= BAD_STEPS:
            raise FlexIPError(
                f"{self.bad} steps in a row gave no finite gradient, the last is step {self.step}; the weights are "
                f"those of step {self.step - self.bad}: lower lr or look for broken samples, then start it again"
            )

    def sum_over_ranks(self, value: int) -> int:
        """The sum over all processes: the same number in each, 0 if it is 0 in each."""
        if self.world_size == 1:
            return value
        return int(self.accelerator.reduce(torch.tensor(value, device=self.accelerator.device)))

    def save(self) -> None:
        """Write a checkpoint (the first process does)."""
        if self.is_main_process:
            self._write()
        self._saved = self.step
        self.accelerator.wait_for_everyone()

    def _write(self) -> None:
        self._whole = False
        weights: dict[str, Tensor] = dict(self.trained.named_parameters())
        moments = {
            f"{name}|{key}": torch.as_tensor(value)
            for name, parameter in weights.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        ema_weights = dict(zip(weights, self.ema.shadow_params, strict=True))
        parts = {"weights": weights, "optimizer": unshared(moments), "ema": ema_weights}
        info = {"skipped": self.skipped, "ema_steps": self.ema.optimization_step, **self.info()}
        state.save(self.checkpoints, self.step, parts, info, keep=self.pace.keep, spare=self.spared())
        self._whole = True

    def _rescue(self) -> None:
        """Save the steps since the last checkpoint, while something else is already wrong; without the others."""
        # Weights that give no finite gradient are no better for being the newest.
        if not self.is_main_process or not self._whole or self.bad or self._saved == self.step:
            return
        try:
            self._write()
        except FlexIPError as error:
            log.info(str(error))
            return
        self._saved = self.step
        log.info(f"step {self.step} is saved")

    def _resume(self) -> None:
        from accelerate.utils import broadcast_object_list

        found, complaints = state.load_newest(self.checkpoints) if self.is_main_process else (None, [])
        for complaint in complaints:
            log.info(complaint)
        # Processes on other machines need not see the first one's folder.
        [found] = broadcast_object_list([found])
        if found is not None:
            self.restore(found)

    def restore(self, found: state.Checkpoint) -> None:
        """Go on from a checkpoint."""
        with torch.no_grad():
            for name, parameter in self.trained.named_parameters():
                parameter.copy_(found.parts["weights"][name])
                slots: dict[str, Any] = {}
                for key, value in found.parts["optimizer"].items():
                    owner, slot = key.rsplit("|", 1)
                    if owner == name:
                        slots[slot] = restored(value, parameter.device)
                if slots:
                    self.optimizer.state[parameter] = slots
            for shadow, (name, _) in zip(self.ema.shadow_params, self.trained.named_parameters(), strict=True):
                shadow.copy_(found.parts["ema"][name])
        self.ema.optimization_step = int(found.info["ema_steps"])
        self.step, self.skipped = found.step, int(found.info["skipped"])
        self._saved = self.step

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[Trained]:
        """Lend `trained` with its averaged weights, in eval mode, for previews and files."""
        self.ema.store(self.trained.parameters())
        self.ema.copy_to(self.trained.parameters())
        self.trained.eval()
        try:
            yield self.trained
        finally:
            self.ema.restore(self.trained.parameters())
            self.trained.train()


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        type(error) is RuntimeError and "DefaultCPUAllocator" in str(error)
    )
