"""The training of an adapter beside a frozen base, stage by stage (App. B.1)."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..common.errors import FlexIPError
from ..method.adapters import FlexIPAdapter
from . import result
from .before.changes import data_changes, fixed_changes, other_changes, stage_changes
from .before.check import load_checked
from .configs.options import TrainConfig, to_dict
from .configs.parts import is_trained
from .configs.sections import TrainStage
from .frozen import Frozen, pick_dtype
from .samples.batch import Batch
from .samples.loader import load, lost_process
from .samples.sample_set import SampleSet, open_samples
from .samples.sampler import TicketBatchSampler
from .samples.unreadable import Unreadable
from .shared import state
from .shared.loop import Loop
from .step import TrainStep, gradient_norms
from .watching.validation import mark_best, read_best
from .watching.watch import Watch


class Trainer(Loop[FlexIPAdapter]):
    """Trains an adapter beside frozen networks, stage by stage (§3.4, App. B.1).

    Raises:
        FlexIPError: something that the run will need is missing or wrong; all of it at once.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.frozen: Frozen
        self.frozen, adapter = load_checked(config)
        self.beside = self.frozen.identities()
        if config.gradient_checkpointing:
            self.frozen.unet.train()
            self.frozen.unet.enable_gradient_checkpointing()
        super().__init__(
            TrainStep(adapter, self.frozen, config.min_snr, config.gamma_spread),
            adapter,
            config,
            Path(config.output),
            config.optimizer,
        )
        self.frozen.to(self.accelerator.device, pick_dtype(config.precision))
        if config.compile:
            self.frozen.unet.compile_repeated_blocks()
        self.seen, self.unreadable = 0, 0
        self.best = read_best(self.checkpoints)
        self.about: dict[str, Any] = {"encoders": self.frozen.hashes(), "data": []}
        self._trouble = Unreadable()
        self._parts: tuple[str, ...] = ()
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
        """Train to the end, or from where it was stopped.

        Raises:
            FlexIPError: as `Loop.run`; the run diverged.
        """
        super().run()
        if self.bad:
            raise FlexIPError(
                f"the run ended at step {self.step}, but its last {self.bad} steps gave no finite gradient, so it has "
                f"diverged: the weights are those of step {self.step - self.bad}; lower lr and begin in another output "
                f"folder, or take what there is with `export {self.folder}`"
            )
        self.say(f"finished at step {self.step}")

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            FlexIPError: as `state.save`; weights that no adapter file can hold, which must not replace good ones.
        """
        largest = result.largest_weight(self.ema.shadow_params)
        if not largest <= result.LARGEST:
            self._whole = False
            there = state.list_steps(self.checkpoints) if self.is_main_process else []
            kept = f"the checkpoint of step {there[-1]} is intact" if there else "there is no earlier checkpoint"
            raise FlexIPError(
                f"the run has diverged: at step {self.step} its averaged weights reach {largest:.3g}, and an adapter "
                f"file holds up to {result.LARGEST:.0f}; {kept}: lower lr, or give more warmup, and start it again"
            )
        super().save()

    def work(self) -> None:
        """All stages.

        Raises:
            FlexIPError: nothing to train on, too many unreadable samples.
        """
        begun = 0
        for number, stage in enumerate(self.config.stages):
            if self.step < begun + stage.steps:
                samples = open_samples(self.config, self.frozen, number, self.world_size)
                self._look_at_data(samples, begun)
                self.watch.samples(samples)
                self._stage(samples, begun, stage)
            begun += stage.steps
            if self.stopped:
                return

    def _look_at_data(self, samples: SampleSet, begun: int) -> None:
        """Note what a stage trains on.

        Raises:
            FlexIPError: a stage goes on that was begun on other data.
        """
        identity = samples.groups.identity()
        if begun < self.step:
            # Checkpoints from before there was an identity tell numbers alone.
            counts = {entry["name"]: {"groups": entry["groups"]} for entry in self.about["data"]}
            differences = data_changes(self.about.get("identity", {"sets": counts}), identity)
            if differences:
                raise FlexIPError(
                    f"the run in {self.folder} was started on other data: {'; '.join(differences)}; put them back, or "
                    "name another output folder"
                )
        self.about |= {"data": samples.groups.describe(), "identity": identity}

    def _stage(self, samples: SampleSet, begun: int, stage: TrainStage) -> None:
        c, steps, self._parts = self.config, stage.steps, stage.parts
        first = (self.step - begun) * c.accumulation
        tickets = TicketBatchSampler(samples.sampler, rank=self.rank, first=first, end=steps * c.accumulation)
        try:
            self.until(
                begun + steps,
                load(samples, tickets, workers=c.workers, pin=self.accelerator.device.type == "cuda"),
            )
        except RuntimeError as error:
            sentence = lost_process(error)
            if sentence is None:
                raise
            # A signal to all processes of a group ends the loading ones first.
            if not self.stop_now():
                raise FlexIPError(sentence) from error

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

    def leave_out(self) -> None:
        """What the stage does not train."""
        for name, parameter in self.adapter.named_parameters():
            if not is_trained(name, self._parts):
                parameter.grad = None

    def gradients(self, norm: float) -> None:
        self.watch.gradients(norm, gradient_norms(self.adapter))

    def log(self) -> None:
        self.watch.log(self.unreadable)

    def spared(self) -> Collection[int]:
        return (self.best[0],) if self.best else ()

    def stepped(self) -> None:
        """A validation and a preview where they are due."""
        every = self.config.validation.every
        if every and (self.step % every == 0 or self.step == self.config.steps):
            self._validate()
        if self.config.preview_every and self.step % self.config.preview_every == 0:
            # What this step's host adds would be added to the preview's.
            self.accelerator.unwrap_model(self.model).host.condition = None
            self.watch.preview()

    def _validate(self) -> None:
        """Measure the validation loss; where it is the lowest so far, keep this step's checkpoint and mark it."""
        found = self.watch.validate(cast(TrainStep, self.accelerator.unwrap_model(self.model)))
        better = found is not None and (self.best is None or found < self.best[1])
        if self.sum_over_ranks(int(better)):
            self.save()
            if found is not None:
                self.best = (self.step, found)
                try:
                    mark_best(self.checkpoints, *self.best)
                except FlexIPError as error:
                    self.say(f"the best checkpoint is not marked: {error}")
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()

    def info(self) -> dict[str, Any]:
        return {
            "seen": self.step * self.config.batch * self.config.accumulation * self.world_size,
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
        start = f"the run in {self.folder}"
        fixed = fixed_changes(saved, now)
        if not fixed and json.loads(found.info["adapter"]) != json.loads(self.adapter.config.to_json()):
            fixed = [f"an adapter of other sizes, from start {saved['start']}, the config now says {now['start']}"]
        if fixed:
            raise FlexIPError(
                f"{start} was started with {'; '.join(fixed)}; put it back, or name another output folder"
            )
        wrong = stage_changes(saved["stages"], now["stages"], found.step)
        if wrong:
            raise FlexIPError(f"{start} {wrong}")
        for key, digest in found.info.get("beside", {}).items():
            named = [values.get(key) for values in (saved, now)]
            # A VAE that neither config names is the base's, whose own hash covers it.
            if self.beside[key] == digest or (key == "vae" and not any(named)):
                continue
            was, held = (name or values["base"] for name, values in zip(named, (saved, now), strict=True))
            what = "noise schedule, prediction or scale of latents" if key == "base_configs" else "weights"
            raise FlexIPError(
                f"the run in {self.folder} was started with {key} {was}, whose {what} are not those of {held} now; put "
                "it back, or name another output folder"
            )
        if found.info["world"] != self.world_size:
            raise FlexIPError(
                f"the run in {self.folder} was started on {found.info['world']} devices, now there are "
                f"{self.world_size}; start it on as many, or name another output folder"
            )
        super().restore(found)
        self.best = read_best(self.checkpoints)
        self.seen, self.unreadable = int(found.info["seen"]), int(found.info["unreadable"])
        self.about |= {key: value for key, value in found.info["about"].items() if key != "encoders"}
        changed = other_changes(saved, now)
        if changed:
            self.say(f"from step {found.step} on the config is another: {', '.join(changed)}")
            self.about["changes"] = [*self.about.get("changes", []), f"from step {found.step}: {', '.join(changed)}"]

    def export(self) -> Path:
        """Write the newest checkpoint's averaged weights as an adapter file with its card; returns the file."""
        found = state.load(self.checkpoints, self.step)
        return result.write(
            self.folder, found, config=self.config, adapter=self.adapter.config, about=found.info["about"]
        )
