"""What a run would do, without doing it: groups, steps, room, and time and memory from some real steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from .configs.options import TrainConfig
from .configs.parts import is_trained
from .samples.batch import Batch
from .samples.loader import load
from .samples.sample_set import open_samples
from .samples.sampler import SIDES, TicketBatchSampler
from .shared.optimizers import CHECKPOINT_BYTES
from .trainer import Trainer

log = logging.getLogger(__name__)

STEPS, WARMUP = 20, 3
"""Steps that are tried, and how many of the first are not timed."""


class _Trial(Trainer):
    """Takes steps and writes nothing."""

    waited = 0.0

    def fetch(self, batches: Iterator[Batch]) -> Batch:
        started = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - started
        return batch.to(self.accelerator.device, non_blocking=True)

    def loss(self, batch: Batch) -> Tensor:
        errors: Tensor = self.model(batch)
        return errors.mean()

    def gradients(self, norm: float) -> None:
        """Nobody looks."""

    def save(self) -> None:
        """Nothing is kept."""


def dry_run(config: TrainConfig) -> None:
    """Log what a config would train, after all checks of a run and `STEPS` steps of its first stage, not kept.
    A run that has begun is not touched.

    Raises:
        FlexIPError: what would stop the run, all of it at once.
    """
    trainer = _Trial(config)
    frozen, adapter, devices = trainer.frozen, trainer.adapter, trainer.world_size
    weights = sum(parameter.numel() for parameter in adapter.parameters())
    a = adapter.config
    log.info(
        f"adapter: {weights / 1e6:.1f} M weights (width {a.width}, depth {a.depth}, {a.heads} heads of {a.head_width}, "
        f"{a.queries} queries), begun from {config.start or 'nothing'}"
    )
    per_step = config.batch * config.accumulation * devices
    sides = (round(per_step * config.image_share), per_step - round(per_step * config.image_share))
    for number, stage in enumerate(config.stages):
        samples = open_samples(config, frozen, number, devices)
        parts = [
            f"{count} {side} groups, each seen {stage.steps * share / count:.3g} times"
            for side, count, share in zip(SIDES, samples.sampler.counts, sides, strict=True)
            if share
        ]
        log.info(f"stage {number + 1}: {stage.steps} steps of {per_step} samples on {'; '.join(parts)}")
        if stage.parts:
            named = adapter.named_parameters()
            trained = sum(p.numel() for name, p in named if is_trained(name, stage.parts))
            log.info(f"stage {number + 1} trains {', '.join(stage.parts)}: {trained / 1e6:.1f} M of the weights")
        for remark in samples.groups.remarks:
            log.info(remark)
    size = CHECKPOINT_BYTES[config.optimizer] * weights / 1e9
    log.info(f"checkpoints: {size:.2f} GB each, {config.keep} are kept; adapter file: {2 * weights / 1e9:.2f} GB")
    seconds = _seconds_per_step(trainer)
    log.info(
        f"{STEPS} steps: {seconds:.3g} s each ({per_step / seconds:.1f} samples/s), waiting for batches "
        f"{trainer.waited / seconds / (STEPS - WARMUP):.0%}, memory {_memory() / 1e9:.1f} GB"
    )
    hours = seconds * config.steps / 3600
    log.info(f"all {config.steps} steps: {hours:.3g} hours, without previews and checkpoints")


def _seconds_per_step(trainer: _Trial) -> float:
    c = trainer.config
    samples = open_samples(c, trainer.frozen, 0, trainer.world_size)
    tickets = TicketBatchSampler(samples.sampler, rank=trainer.rank, first=0, end=STEPS * c.accumulation)
    batches = load(samples, tickets, workers=c.workers, pin=trainer.accelerator.device.type == "cuda")
    started = 0.0
    for step in range(STEPS):
        if step == WARMUP:
            started, trainer.waited = _now(), 0.0
        trainer.update(batches)
    return (_now() - started) / (STEPS - WARMUP)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory() -> int:
    """The most bytes that the device had taken; without one what the process takes now."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)
