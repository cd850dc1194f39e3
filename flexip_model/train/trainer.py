"""The training of an adapter beside a frozen base, stage by stage (App. B.1)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ..common.errors import FlexIPError
from ..method.adapters import FlexIPAdapter
from . import result
from .configs.options import TrainConfig, to_dict
from .frozen import Frozen, load_frozen, pick_dtype
from .samples.batch import Batch, collate
from .samples.sample_set import SampleSet, open_samples
from .samples.sampler import TicketBatchSampler
from .samples.unreadable import Unreadable
from .shared import state
from .shared.loop import Loop
from .start import begin
from .step import TrainStep, gradient_norms
from .watch import Watch


class Trainer(Loop[FlexIPAdapter]):
    """Trains an adapter beside frozen networks, stage by stage (§3.4, App. B.1)."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.frozen: Frozen = load_frozen(config)
        self.beside = self.frozen.identities()
        adapter = begin(config, self.frozen)
        if config.gradient_checkpointing:
            self.frozen.unet.train()
            self.frozen.unet.enable_gradient_checkpointing()
        super().__init__(
            TrainStep(adapter, self.frozen, config.min_snr, config.gamma_spread), adapter, config, Path(config.output)
        )
        self.frozen.to(self.accelerator.device, pick_dtype(config.precision))
        if config.compile:
            self.frozen.unet.compile_repeated_blocks()
        self.seen, self.unreadable = 0, 0
        self.about: dict[str, Any] = {"encoders": self.frozen.hashes(), "data": []}
        self._trouble = Unreadable()
        self._watch: Watch | None = None

    @property
    def adapter(self) -> FlexIPAdapter:
        return self.trained

    @property
    def watch(self) -> Watch:
        """The progress that a person sees; it is made when the run begins."""
        if self._watch is None:
            self._watch = Watch(self, self.config, self.frozen)
        return self._watch

    def run(self) -> None:
        super().run()
        self.say(f"finished at step {self.step}")

    def work(self) -> None:
        """All stages.

        Raises:
            FlexIPError: nothing to train on, too many unreadable samples.
        """
        begun = 0
        for number, stage in enumerate(self.config.stages):
            if self.step < begun + stage.steps:
                samples = open_samples(self.config, self.frozen, number, self.world_size)
                data = samples.groups.describe()
                if begun < self.step and data != self.about["data"]:
                    raise FlexIPError(
                        f"the run in {self.folder} was started on {_in_words(self.about['data'])}, the "
                        f"data now are {_in_words(data)}; put them back, or name another output folder"
                    )
                self.about["data"] = data
                self.watch.samples(samples)
                self._stage(samples, begun, stage.steps)
            begun += stage.steps
            if self.stopped:
                return

    def _stage(self, samples: SampleSet, begun: int, steps: int) -> None:
        from torch.utils.data import DataLoader

        c = self.config
        first = (self.step - begun) * c.accumulation
        loader: Any = DataLoader(
            samples,
            batch_sampler=TicketBatchSampler(samples.sampler, rank=self.rank, first=first, end=steps * c.accumulation),
            num_workers=c.workers,
            collate_fn=collate,
            pin_memory=self.accelerator.device.type == "cuda",
            persistent_workers=False,
            prefetch_factor=4 if c.workers else None,
        )
        self.until(begun + steps, iter(loader))

    def fetch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, counted.

        Raises:
            FlexIPError: more unreadable samples than `bad_share`.
        """
        waited = time.perf_counter()
        batch = next(batches).to(self.accelerator.device, non_blocking=True)
        self.watch.waited(time.perf_counter() - waited)
        self.seen += len(batch) * self.world_size
        self.unreadable += self.sum_over_ranks(int(batch.unreadable.sum()))
        self._trouble.met(batch.complaints, self.unreadable, self.seen, self.config.bad_share)
        return batch

    def loss(self, batch: Batch) -> Tensor:
        """The mean of the samples' weighted errors (Eq. 6), ()."""
        errors: Tensor = self.model(batch)
        self.watch.errors(errors.detach(), batch.variant)
        return errors.mean()

    def gradients(self, norm: float) -> None:
        self.watch.gradients(norm, gradient_norms(self.adapter))

    def log(self) -> None:
        self.watch.log(self.unreadable)

    def stepped(self) -> None:
        """A preview where one is due."""
        if self.config.preview_every and self.step % self.config.preview_every == 0:
            # What this step's host adds would be added to the preview's.
            self.accelerator.unwrap_model(self.model).host.condition = None
            self.watch.preview()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()

    def info(self) -> dict[str, Any]:
        return {
            "seen": self.seen,
            "unreadable": self.unreadable,
            "world": self.world_size,
            "config": to_dict(self.config),
            "adapter": self.adapter.config.to_json(),
            "about": self.about,
            "beside": self.beside,
        }

    def restore(self, found: state.Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            FlexIPError: it belongs to an adapter of other sizes, to another base or encoder, or its run drew its
                samples otherwise.
        """
        saved, now = found.info["config"], json.loads(json.dumps(to_dict(self.config)))
        for key in ("seed", "batch", "accumulation", "image_share", "adapter", "size"):
            if saved[key] != now[key]:
                raise FlexIPError(
                    f"the run in {self.folder} was started with {key} {saved[key]}, the config now says "
                    f"{now[key]}; put it back, or name another output folder"
                )
        for key, digest in found.info.get("beside", {}).items():
            if self.beside[key] != digest:
                raise FlexIPError(
                    f"the run in {self.folder} was started with {key} {saved[key]}, whose weights are "
                    f"not those of {now[key]} now; put it back, or name another output folder"
                )
        if found.info["world"] != self.world_size:
            raise FlexIPError(
                f"the run in {self.folder} was started on {found.info['world']} devices, now there are "
                f"{self.world_size}; start it on as many, or name another output folder"
            )
        super().restore(found)
        self.seen, self.unreadable = int(found.info["seen"]), int(found.info["unreadable"])
        self.about["data"] = found.info["about"]["data"]

    def export(self) -> Path:
        """Write the newest checkpoint's averaged weights as an adapter file with its card; returns the file."""
        found = state.load(self.checkpoints, state.list_steps(self.checkpoints)[-1])
        return result.write(
            self.folder, found, config=self.config, adapter=self.adapter.config, about=found.info["about"]
        )


def _in_words(data: list[dict[str, Any]]) -> str:
    return ", ".join(f"{entry['groups']} groups of {entry['name']}" for entry in data) or "no groups"
