"""The signs of a run that a person sees: lines of progress, TensorBoard scalars, γ sweeps of validation subjects."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ...common.errors import FlexIPError
from ...method.adapters import FlexIPAdapter
from ..configs.options import TrainConfig, to_dict
from ..frozen import Frozen
from ..preview import Preview, draw
from ..samples.sample_set import SampleSet
from ..samples.sampler import SIDES
from ..shared.loop import Loop
from ..shared.records import Records
from ..shared.trackers import open_trackers
from ..step import TrainStep
from .validation import GAMMAS, Validation


class Watch:
    """Sums up between two entries of the log; in other processes than the first it only takes part in sums.

    Args:
        loop: the training that is watched.
        config: its config.
        frozen: the networks beside which previews are drawn.
    """

    def __init__(self, loop: Loop[FlexIPAdapter], config: TrainConfig, frozen: Frozen) -> None:
        self.loop, self.config, self.frozen = loop, config, frozen
        self._errors = torch.zeros(2, 2, dtype=torch.float64)
        self._norms: dict[str, float] = {}
        self._steps = 0
        self._waited = 0.0
        self._since, self._step = time.perf_counter(), loop.step
        self._preview: Preview | None = None
        self._validation: Validation | None = None
        self._records: Records | None = None
        if loop.is_main_process:
            trackers = open_trackers(config.trackers, loop.folder / "trackers", to_dict(config))
            self._records = Records(loop.folder, loop.step, loop.say, trackers)

    def samples(self, samples: SampleSet) -> None:
        """Say which groups a stage trains on, and which caches it reads."""
        counts = ", ".join(f"{n} {side}" for n, side in zip(samples.sampler.counts, SIDES, strict=True))
        self.loop.say(f"stage {samples.sampler.stage + 1}: groups {counts}; from step {self.loop.step}")
        for sentence in samples.groups.remarks:
            self.loop.say(sentence)
        if self.loop.is_main_process and self._preview is None and self.config.preview_every:
            self._preview = samples.preview()
        if self._records is not None and self._validation is None and self.config.validation.every:
            self._validation = Validation(self.config, self.frozen)
            lacking = [side for side, count in zip(SIDES, self._validation.counts, strict=True) if not count]
            if lacking:
                self.loop.say(
                    f"no {' or '.join(lacking)} groups lie in the split val, so none are in the validation loss; pack "
                    "with `--val 0.05` for more"
                )

    def waited(self, seconds: float) -> None:
        """Add time in which the device had no batch."""
        self._waited += seconds

    def errors(self, errors: Tensor, variant: Tensor) -> None:
        """Add a batch's losses (B,), with the mask (B,) bool of its variants."""
        errors, variant = errors.cpu().double(), variant.cpu()
        for side, chosen in enumerate((~variant, variant)):
            self._errors[side] += torch.stack([errors[chosen].sum(), chosen.sum()])

    def gradients(self, norm: float, branches: dict[str, float]) -> None:
        self._steps += 1
        for name, value in {"all": norm, **branches}.items():
            self._norms[name] = self._norms.get(name, 0.0) + value

    def log(self, unreadable: int) -> None:
        """Write one entry: losses by side of the gate, gradients by branch, learning rate, speed, waiting, time left.

        Args:
            unreadable: samples that could not be read so far.
        """
        loop, c = self.loop, self.config
        sums = loop.accelerator.reduce(self._errors.float().to(loop.accelerator.device)).cpu()
        now = time.perf_counter()
        seconds, steps = max(now - self._since, 1e-9), loop.step - self._step
        speed = steps * c.batch * c.accumulation * loop.world_size / seconds
        left = (c.steps - loop.step) * seconds / max(steps, 1)
        values = {f"loss/{side}": float(s / n) for side, (s, n) in zip(SIDES, sums, strict=True) if n > 0}
        values["loss/all"] = float(sums[:, 0].sum() / sums[:, 1].sum().clamp(min=1))
        values |= {f"gradient/{name}": value / max(self._steps, 1) for name, value in self._norms.items()}
        alpha, beta = loop.trained.gate.alpha_beta().tolist()
        values |= {
            "rate": loop.learning_rate(),
            "samples_per_second": speed,
            "waiting_share": self._waited / seconds,
            "unreadable": unreadable,
            "skipped_steps": loop.skipped,
            "gate/alpha": alpha,
            "gate/beta": beta,
        }
        if self._records is not None:
            self._records.entry(loop.step, values)
            sides = " ".join(f"{s} {values[f'loss/{s}']:.4f}" for s in SIDES if f"loss/{s}" in values)
            loop.say(
                f"step {loop.step}/{c.steps}  loss {values['loss/all']:.4f} ({sides})  "
                f"{speed:.1f} samples/s  waiting {values['waiting_share']:.0%}  left {_clock(left)}"
            )
        self._errors.zero_()
        self._norms, self._steps, self._waited = {}, 0, 0.0
        self._since, self._step = time.perf_counter(), loop.step

    def preview(self) -> None:
        """Draw a γ sweep of validation subjects with the averaged weights, as a PNG and for TensorBoard; where that
        fails, say why and go on: the run is worth more than a picture of it."""
        loop = self.loop
        if self._records is not None and self._preview is not None:
            started = time.perf_counter()
            try:
                with loop.ema_weights() as adapter:
                    sheet = draw(self._preview, self.frozen, adapter, self.config)
                self._records.preview(loop.step, sheet)
            except (torch.OutOfMemoryError, MemoryError):
                loop.say(
                    f"there is too little memory for the preview of step {loop.step}; the run goes on without it: free "
                    "some, or set preview_every: 0"
                )
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            except FlexIPError as error:
                loop.say(f"there is no preview of step {loop.step}: {error}; the run goes on")
            self._since += time.perf_counter() - started
        loop.accelerator.wait_for_everyone()

    def validate(self, step: TrainStep) -> float | None:
        """Measure the averaged weights on the validation groups, and write an entry; returns `validation/all`.

        None where there is nothing to measure, where it fails, which is said, and in other processes than the first.
        """
        loop = self.loop
        if self._records is None or self._validation is None or not any(self._validation.counts):
            return None
        started = time.perf_counter()
        try:
            with loop.ema_weights():
                values = self._validation.measure(step, loop.accelerator.device)
        except (FlexIPError, OSError) as error:
            loop.say(f"there is no validation loss of step {loop.step}: {error}; the run goes on")
            return None
        finally:
            self._since += time.perf_counter() - started
        self._records.entry(loop.step, values)
        parts = [
            f"{side} " + " ".join(f"{values[key]:.4f}" for key in values if f"/{side}/" in key)
            for side, count in zip(SIDES, self._validation.counts, strict=True)
            if count
        ]
        loop.say(
            f"step {loop.step}: validation loss {values['validation/all']:.4f} "
            f"({', '.join(parts)} at γ {', '.join(f'{g:g}' for g in GAMMAS)})"
        )
        return values["validation/all"]

    def close(self) -> None:
        if self._records is not None:
            self._records.close()


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
