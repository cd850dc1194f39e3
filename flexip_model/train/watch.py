"""The signs of a run that a person sees: lines of progress, TensorBoard scalars, γ sweeps of validation subjects."""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from torch import Tensor

from ..method.adapters import FlexIPAdapter
from .configs.options import TrainConfig
from .frozen import Frozen
from .preview import Preview, draw
from .samples.sample_set import SampleSet
from .samples.sampler import SIDES
from .shared.loop import Loop


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
        self._writer: Any = None
        if loop.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            loop.folder.mkdir(parents=True, exist_ok=True)
            self._writer = SummaryWriter(str(loop.folder / "logs"), purge_step=loop.step)

    def samples(self, samples: SampleSet) -> None:
        """Say which groups a stage trains on, and which caches it reads."""
        counts = ", ".join(f"{n} {side}" for n, side in zip(samples.sampler.counts, SIDES, strict=True))
        self.loop.say(f"stage {samples.sampler.stage + 1}: groups {counts}; from step {self.loop.step}")
        for sentence in samples.groups.remarks:
            self.loop.say(sentence)
        if self.loop.is_main_process and self._preview is None and self.config.preview_every:
            self._preview = samples.preview()

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
        if loop.is_main_process:
            for name, value in values.items():
                self._writer.add_scalar(name, value, loop.step)
            with (loop.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": loop.step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")
            sides = " ".join(f"{s} {values[f'loss/{s}']:.4f}" for s in SIDES if f"loss/{s}" in values)
            loop.say(
                f"step {loop.step}/{c.steps}  loss {values['loss/all']:.4f} ({sides})  "
                f"{speed:.1f} samples/s  waiting {values['waiting_share']:.0%}  left {_clock(left)}"
            )
        self._errors.zero_()
        self._norms, self._steps, self._waited = {}, 0, 0.0
        self._since, self._step = time.perf_counter(), loop.step

    def preview(self) -> None:
        """Draw a γ sweep of validation subjects with the averaged weights, as a PNG and in TensorBoard."""
        loop = self.loop
        if loop.is_main_process and self._preview is not None:
            from torchvision.transforms.functional import pil_to_tensor

            started = time.perf_counter()
            with loop.ema_weights() as adapter:
                sheet = draw(self._preview, self.frozen, adapter, self.config)
            folder = loop.folder / "previews"
            folder.mkdir(exist_ok=True)
            sheet.save(folder / f"step-{loop.step:07d}.png")
            self._writer.add_image("sweep", pil_to_tensor(sheet), loop.step)
            self._since += time.perf_counter() - started
        loop.accelerator.wait_for_everyone()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
