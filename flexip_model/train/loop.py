"""The training loop: accelerate underneath, one optimizer, checkpoints that a resumed run continues exactly."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapter import FlexIPAdapter
from ..errors import FlexIPError
from . import result, state
from .config import TrainConfig, to_dict
from .frozen import Frozen, load_frozen, pick_dtype
from .order import Batches
from .samples import SampleSet, collate, open_samples
from .start import begin
from .step import TrainStep, gradient_norms, parameter_groups
from .watch import Watch

BAD_STEPS = 20
"""Steps without a finite gradient in a row at which a run stops (our choice)."""


class Trainer:
    """A run: everything that is trained, and how far it has come.

    Args:
        config: see `TrainConfig`.
    """

    def __init__(self, config: TrainConfig) -> None:
        from accelerate import Accelerator
        from diffusers.training_utils import EMAModel

        self.config = config
        # The config decides the precision, not how the run was launched.
        self.accelerator = Accelerator(mixed_precision="no")
        self.folder = Path(config.output)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.frozen: Frozen = load_frozen(config)
        adapter = begin(config, self.frozen)
        self.adapter: FlexIPAdapter = adapter.to(self.accelerator.device)
        self.frozen.to(self.accelerator.device, pick_dtype(config.precision))
        if config.gradient_checkpointing:
            self.frozen.unet.train()
            self.frozen.unet.enable_gradient_checkpointing()
        self.model: nn.Module = self.accelerator.prepare_model(TrainStep(adapter, self.frozen, config.min_snr))
        if config.compile:
            self.frozen.unet.compile_repeated_blocks()
        self.optimizer = torch.optim.AdamW(parameter_groups(adapter, config.weight_decay), lr=config.lr,
                                           betas=config.betas, fused=True)
        self.ema = EMAModel(adapter.parameters(), decay=config.ema)
        self.step, self.seen, self.unreadable, self.skipped, self.bad = 0, 0, 0, 0, 0
        self.about: dict[str, Any] = {"encoders": self.frozen.hashes(), "data": []}
        self._stopped_by = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.accelerator.is_main_process

    def rate(self) -> float:
        """The learning rate of the next step."""
        c = self.config
        rising = min(1.0, (self.step + 1) / c.warmup) if c.warmup else 1.0
        if c.schedule == "constant":
            return c.lr * rising
        return c.lr * rising * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / c.steps)))

    def run(self) -> None:
        """Train to the end of the last stage, from the newest checkpoint in the run's folder if there is one.

        Raises:
            FlexIPError: nothing to train on, too many unreadable samples or steps without a finite gradient, no room
                for a checkpoint, memory that does not suffice; the newest checkpoint is intact in each case.
            KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM, once a checkpoint is written.
        """
        self._resume()
        watch = Watch(self)
        begun = 0
        try:
            with _signals(self._stop):
                for number, stage in enumerate(self.config.stages):
                    if self.step < begun + stage.steps:
                        samples = open_samples(self.config, self.frozen, number, self.world)
                        self.about["data"] = samples.groups.describe()
                        watch.samples(samples)
                        self._stage(samples, begun, stage.steps, watch)
                    begun += stage.steps
                    if self._stopped_by:
                        break
            if self.step not in state.list_steps(self._checkpoints):
                self.save()
            if self._stopped_by:
                watch.say(f"stopped by signal {self._stopped_by} at step {self.step}; "
                          "the same command goes on from there")
                raise SystemExit(128 + self._stopped_by)
            watch.finish()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if type(error) is RuntimeError and "DefaultCPUAllocator" not in str(error):
                raise
            cause = (str(error) or type(error).__name__).splitlines()[0]
            raise FlexIPError(
                f"memory ran out at step {self.step} ({cause}); the newest checkpoint is intact: "
                "set a smaller batch with more accumulation, or gradient_checkpointing: true, and start it again"
            ) from error
        finally:
            watch.close()

    def _stage(self, samples: SampleSet, begun: int, steps: int, watch: Watch) -> None:
        from torch.utils.data import DataLoader

        c = self.config
        first = (self.step - begun) * c.accumulation
        loader: Any = DataLoader(
            samples, batch_sampler=Batches(samples.order, self.rank, first, steps * c.accumulation),
            num_workers=c.workers, collate_fn=collate, pin_memory=self.accelerator.device.type == "cuda",
            persistent_workers=False, prefetch_factor=4 if c.workers else None)
        batches = iter(loader)
        while self.step < begun + steps and not self._stopped_by:
            self._update(batches, watch)
            if self._agree(self._stopped_by) or self.step % c.save_every == 0:
                self.save()
            if self.step % c.log_every == 0 or self.step == c.steps:
                watch.log()
            if c.preview_every and self.step % c.preview_every == 0:
                watch.preview()

    def _update(self, batches: Iterator[dict[str, Any]], watch: Watch) -> None:
        """One optimizer step; without a finite loss and gradient the weights stay as they are."""
        from accelerate.utils import send_to_device

        c = self.config
        total = 0.0
        for micro in range(c.accumulation):
            waited = time.perf_counter()
            batch = send_to_device(next(batches), self.accelerator.device, non_blocking=True)
            watch.waited(time.perf_counter() - waited)
            self._count(batch)
            last = micro == c.accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                errors = self.model(batch)
                loss = errors.mean() / c.accumulation
                self.accelerator.backward(loss)
            total += float(loss.detach())
            watch.errors(errors.detach(), batch["variant"])
        norm = float(nn.utils.clip_grad_norm_(self.adapter.parameters(), math.inf))
        finite = self._agree(0 if math.isfinite(norm) and math.isfinite(total) else 1) == 0
        if finite:
            watch.gradients(norm, gradient_norms(self.adapter))
            nn.utils.clip_grad_norm_(self.adapter.parameters(), c.clip_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            self.optimizer.step()
            self.ema.step(self.adapter.parameters())
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += not finite
        self.bad = 0 if finite else self.bad + 1
        self.step += 1
        if self.bad >= BAD_STEPS:
            raise FlexIPError(
                f"{self.bad} steps in a row gave no finite gradient, the last is step {self.step}; the weights are "
                f"those of step {self.step - self.bad}: lower lr or look for broken samples, then start it again"
            )

    def _count(self, batch: dict[str, Any]) -> None:
        self.seen += len(batch["variant"]) * self.world
        self.unreadable += self._sum(int(batch["unreadable"].sum()))
        if self.unreadable > max(10, self.config.bad_share * self.seen):
            raise FlexIPError(
                f"{self.unreadable} of {self.seen} samples could not be read, more than {self.config.bad_share:.1%}; "
                "run `python -m flexip_model data validate` on the data, or raise bad_share"
            )

    def _sum(self, value: int) -> int:
        if self.world == 1:
            return value
        return int(self.accelerator.reduce(torch.tensor(value, device=self.accelerator.device)))

    def _agree(self, value: int) -> int:
        """The same number in all processes: 0 if it is 0 in each."""
        return self._sum(int(value))

    def _stop(self, number: int, _frame: Any) -> None:
        self._stopped_by = number

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def save(self) -> None:
        """Write a checkpoint (the first process does)."""
        if self.first:
            weights: dict[str, torch.Tensor] = dict(self.adapter.named_parameters())
            moments = {f"{name}|{key}": torch.as_tensor(value) for name, parameter in self.adapter.named_parameters()
                       for key, value in self.optimizer.state[parameter].items()}
            averages = dict(zip(weights, self.ema.shadow_params, strict=True))
            parts = {"adapter": weights, "optimizer": moments, "ema": averages}
            info = {"seen": self.seen, "unreadable": self.unreadable, "skipped": self.skipped, "world": self.world,
                    "ema_steps": self.ema.optimization_step, "config": to_dict(self.config),
                    "adapter": self.adapter.config.to_json(), "about": self.about}
            state.save(self._checkpoints, self.step, parts, info, self.config.keep)
        self.accelerator.wait_for_everyone()

    def export(self) -> Path:
        """Write the newest checkpoint's averaged weights as an adapter file with its card; returns the file."""
        found = state.load(self._checkpoints, state.list_steps(self._checkpoints)[-1])
        return result.write(self.folder, found, self.config, self.adapter.config, found.info["about"])

    def _resume(self) -> None:
        found, complaints = state.load_newest(self._checkpoints) if self.first else (None, [])
        for complaint in complaints:
            print(complaint, flush=True)
        self.accelerator.wait_for_everyone()
        if not self.first:
            found, _ = state.load_newest(self._checkpoints)
        if found is None:
            return
        self.restore(found)

    def restore(self, found: state.Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            FlexIPError: it belongs to an adapter of other sizes, or its run drew its samples otherwise.
        """
        saved = found.info["config"]
        for key in ("seed", "batch", "accumulation", "image_share", "adapter", "size"):
            if saved[key] != to_dict(self.config)[key]:
                raise FlexIPError(
                    f"the run in {self.folder} was started with {key} {saved[key]}, the config now says "
                    f"{to_dict(self.config)[key]}; put it back, or name another output folder"
                )
        if found.info["world"] != self.world:
            raise FlexIPError(f"the run in {self.folder} was started on {found.info['world']} devices, now there are "
                              f"{self.world}; start it on as many, or name another output folder")
        with torch.no_grad():
            for name, parameter in self.adapter.named_parameters():
                parameter.copy_(found.parts["adapter"][name])
                slots: dict[str, Any] = {}
                for key, value in found.parts["optimizer"].items():
                    owner, slot = key.rsplit("|", 1)
                    if owner == name:
                        slots[slot] = value if slot == "step" else value.to(parameter.device)
                if slots:
                    self.optimizer.state[parameter] = slots
            for shadow, (name, _) in zip(self.ema.shadow_params, self.adapter.named_parameters(), strict=True):
                shadow.copy_(found.parts["ema"][name])
        self.ema.optimization_step = int(found.info["ema_steps"])
        self.step = found.step
        self.seen, self.unreadable = int(found.info["seen"]), int(found.info["unreadable"])
        self.skipped = int(found.info["skipped"])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[FlexIPAdapter]:
        """The adapter with its averaged weights, in eval mode, for previews and files."""
        self.ema.store(self.adapter.parameters())
        self.ema.copy_to(self.adapter.parameters())
        self.adapter.eval()
        try:
            yield self.adapter
        finally:
            self.ema.restore(self.adapter.parameters())
            self.adapter.train()


@contextlib.contextmanager
def _signals(handler: Any) -> Iterator[None]:
    """SIGTERM and SIGINT finish the step and save, instead of ending the process at once."""
    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # not in the main thread
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
