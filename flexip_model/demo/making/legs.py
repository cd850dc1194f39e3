"""The small model trained in legs: each goes on where the one before ended, on a card or a processor.

A leg goes on from the states in its work folder. Where these were lost with their machine, it goes on from the stages
that were finished.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import FlexIPError
from ...files.safefile import sha256
from ...images.contact_sheet import draw_cells
from ..scenes.compose import Composer
from ..scenes.drawn import Drawer, Drawing, Drawn, join
from ..scenes.painter import Painter
from ..scenes.store import INDEX, Store
from ..scenes.words import LENGTH as TEXT_LENGTH
from ..stages.kinds import kind_and_seed
from ..stages.networks import ENCODER_SIDE
from ..stages.sampling import sample
from .adapting import TOKENS, before, reads_places, references_of, train_adapters
from .drawing import train_base
from .finished import ADAPTERS, EXPORTED, STORE, TOKENIZER, Networks, export_model, is_done, need, save, weights_of
from .pictures import Targets, train_dino, train_sight, train_vae
from .places import train_keys, train_places
from .plan import STAGES, Plan
from .pool import Pool, fill
from .reading import train_reader
from .run import steps_of

log = logging.getLogger(__name__)

SCENE_VARIANTS = 48
POOLS = "pools"
"""Its folder of targets, painted and encoded, on a processor."""
SEEN = 20_000
"""Targets for the VAE and the encoders, which are not trained long enough to see more of them."""
LOOKS = (
    "a 3d render of a dog on a plain blue background",
    "a 3d render of a fox in the snow",
    "a 3d render of a hamburger on a plain white background",
    "a 3d render of a rocket in a night sky with stars",
    "a 3d render of a cactus in the desert",
    "a 3d render of a robot in a city",
    "a 3d render of a car on a plain yellow background",
    "a 3d render of a butterfly in a green meadow",
    "a cartoon of a cat on a plain green background",
    "a cartoon of a penguin in the snow",
    "a flat icon of a strawberry on a plain white background",
    "a flat icon of a tree on a plain orange background",
    "a 3d render of a tomato on a plain white background",
    "a 3d render of a turtle on a beach",
    "a 3d render of a house in a green meadow",
    "a 3d render of a wolf on a plain purple background",
)
"""Prompts of the sheet of the base's pictures; the last four ask for renderings that the base has never seen."""


class Legs:
    """The stages in order; each starts from what the ones before left in `work`.

    Args:
        work: store, tokenizer and text encoder; states and finished networks.
        start_vae: a VAE in diffusers' layout to begin from; else it begins as a linear one (`vae.build`).
        seconds: until this leg ends.
        processes: that draw recipes, by default one for each core; 0 draws them here.
        start: a folder of adapter files that the adapters of their names begin from.

    Raises:
        FlexIPError: as `Networks`; there is no store.
    """

    def __init__(
        self,
        work: Path,
        plan: Plan,
        start_vae: Path | None = None,
        *,
        seconds: float = inf,
        processes: int | None = None,
        start: Path | None = None,
    ) -> None:
        self.start = start
        self.deadline = time.monotonic() + seconds
        need(work / STORE / INDEX, "data")
        self.work, self.plan = work, plan
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(1)
        self.networks = Networks(work, self.device, start_vae)
        self.store = Store.open(work / STORE)
        self.painter = Painter(self.store, self.device, SCENE_VARIANTS)
        self._drawer = Drawer((os.cpu_count() or 1) if processes is None else processes)
        self._asked: dict[bool, list[Callable[[], Drawn]]] = {}

    def close(self) -> None:
        """End the processes that draw."""
        self._drawer.close()

    def go(self, until: str = STAGES[-1]) -> bool:
        """All stages up to one of `STAGES`; False if the leg ended before they were done."""
        wanted = STAGES[: STAGES.index(until) + 1]
        left = {stage for stage in wanted if not self._is_done(stage)}
        for lessons, readers in ((False, left - {"base"}), (True, left & {"base"})):
            if readers and self._kept(lessons) is None:
                self._ask(lessons)  # begun now, so that recipes are drawn while the card trains
        for stage in wanted:
            if stage == "adapters":
                if not self._is_done(stage) and not self._adapters():
                    return False
            elif self._is_done(stage):
                self.networks.load(stage)
            else:
                log.info(f"== {stage}, {self._left()} of this leg left")
                if not getattr(self, f"_{stage}")():
                    return False
                self.networks.finish(stage)
                if stage in ("base", "places"):
                    self.sheet().save(self.work / stage / "sheet.png")
        return True

    def _left(self) -> str:
        left = self.deadline - time.monotonic()
        return "all" if left == inf else f"{left:.0f} s"

    def _is_done(self, stage: str) -> bool:
        if stage == "adapters":
            return not self._missing()
        return is_done(self.work, stage)

    def _missing(self) -> list[str]:
        """The wanted adapters that have no file yet."""
        return [name for name in self.plan.wanted if not (self.work / ADAPTERS / f"{name}.safetensors").exists()]

    def _ask(self, lessons: bool) -> list[Callable[[], Drawn]]:
        if lessons not in self._asked:
            drawing = self._drawing(lessons)
            count = self.plan.lessons if lessons else self.plan.targets
            self._asked[lessons] = self._drawer.start(drawing, count)
        return self._asked[lessons]

    def _drawing(self, lessons: bool) -> Drawing:
        seed = 7 if lessons else 5
        return Drawing(self.work / STORE, self.work / TOKENIZER, lessons, seed, SCENE_VARIANTS)

    def _drawn(self, lessons: bool, at_most: float = inf) -> Drawn:
        parts: list[Drawn] = []
        for draw in self._ask(lessons):
            if sum(map(len, parts)) < at_most:
                parts.append(draw())
        return join(parts)

    def _targets(self) -> Targets:
        drawn = self._drawn(False, SEEN)
        rows = {kind: torch.from_numpy(getattr(drawn, kind)).to(self.device) for kind in ("targets", "variant")}
        ids = torch.full((len(drawn), drawn.ids.shape[1], TEXT_LENGTH), self._pad)
        ids[..., : drawn.ids.shape[2]] = torch.from_numpy(drawn.ids).long()
        return Targets(self.painter, rows, ids.to(self.device))

    @property
    def _pad(self) -> int:
        return int(self.networks.words.tokenizer.pad_token_id)

    def _vae(self) -> bool:
        return train_vae(self.networks.vae, self._targets(), self.plan.vae, self.work, self.deadline)

    def _clip(self) -> bool:
        @torch.no_grad()
        def pooled(ids: Tensor) -> Tensor:
            state: Tensor = self.networks.base.text(ids).pooler_output
            return state

        return train_sight(self.networks.sight, pooled, self._targets(), self.plan.clip, self.work, self.deadline)

    def _dino(self) -> bool:
        networks = self.networks
        return train_dino(networks.dino, networks.vae, self._targets(), self.plan.dino, self.work, self.deadline)

    def _base(self) -> bool:
        return train_base(self.networks.base, self._pool(True), self.plan.base, self.work, self.deadline)

    def _tokens(self) -> bool:
        return train_reader(self.networks.reader, self._adapters_pool, self.plan.tokens, self.work, self.deadline)

    def _places(self) -> bool:
        base, pool = self.networks.base, self._adapters_pool
        return train_places(base, pool, self.plan.places, self.work, self.deadline)

    def _keys(self) -> bool:
        networks, pool, pace = self.networks, self._adapters_pool, self.plan.keys
        return train_keys(networks.base, networks.reader, networks.keys, pool, pace, self.work, self.deadline)

    @cached_property
    def _adapters_pool(self) -> Pool:
        return self._pool(False)

    def _pool(self, lessons: bool) -> Pool:
        kinds = () if lessons else references_of(self._missing())
        kept = self._kept(lessons)
        if kept is not None:
            log.info(f"targets from {kept}")
            return Pool.read(kept, self._pad)
        begun, drawn = time.monotonic(), self._drawn(lessons)
        waited = time.monotonic() - begun
        pool = fill(self.painter, drawn, self.networks.encoding(), self._pad, kinds)
        took = time.monotonic() - begun - waited
        log.info(f"{len(pool)} targets: waited {waited:.0f} s for recipes, painted and encoded in {took:.0f} s")
        if self.device.type != "cuda":  # which makes them anew sooner than they are read; a processor takes minutes
            pool.write(self._pool_file(lessons))
        return pool

    def _kept(self, lessons: bool) -> Path | None:
        """The file of a pool that an earlier leg encoded."""
        if not all(weights_of(self.work, stage).exists() for stage in _encoders(lessons)):
            return None
        path = self._pool_file(lessons)
        return path if path.exists() else None

    def _pool_file(self, lessons: bool) -> Path:
        """Its name tells what it is made of and by which networks."""
        files = [self.work / STORE / INDEX, self.work / TOKENIZER / "vocab.json"]
        files += [weights_of(self.work, stage) for stage in _encoders(lessons)]
        kinds = () if lessons else references_of(self._missing())
        drawing, count = self._drawing(lessons), self.plan.lessons if lessons else self.plan.targets
        made_by = (drawing.lessons, drawing.seed, drawing.scene_variants, count, kinds, *map(sha256, files))
        return self.work / POOLS / f"{hashlib.sha256(repr(made_by).encode()).hexdigest()[:12]}.safetensors"

    def sheet(self) -> Any:
        """`LOOKS` drawn by the base, eight a row."""
        networks = self.networks
        pictures = sample(networks.base, networks.vae, networks.words, LOOKS, steps=20)
        return draw_cells([("", picture) for picture in pictures], 8)

    def _adapters(self) -> bool:
        """Train the wanted adapters that have no file yet, and write theirs."""
        log.info(f"== adapters, {self._left()} of this leg left")
        networks, wanted = self.networks, self._missing()
        pool = self._adapters_pool
        black = torch.zeros(1, 3, ENCODER_SIDE, ENCODER_SIDE, device=self.device)
        null = {name: torch.zeros_like(value[:1]).float() for name, value in pool.references["variant"].items()}
        with torch.no_grad():
            null["hidden"] = networks.encoding().visual(black, hidden=True).hidden.float()
        # Adapters that are asked for later are a run of their own.
        run = f"{ADAPTERS}/run-{hashlib.sha256(' '.join(wanted).encode()).hexdigest()[:8]}"
        adapters = train_adapters(
            networks.base,
            pool,
            null,
            wanted=wanted,
            pace=self.plan.adapters,
            work=self.work,
            name=run,
            deadline=self.deadline,
            start=self.start,
            taught=networks.teach,
        )
        if adapters is None:
            return False
        encoders = networks.write_base(self.work / "model")
        taken = steps_of(self.work, run)
        composer = Composer(self.store.split(heldout=False), SCENE_VARIANTS)
        dials: dict[str, tuple[float, ...]] = {}
        for name, adapter in adapters.items():
            if kind_and_seed(name)[0] == "flexip":
                try:
                    dials[name] = networks.dial(adapter, composer, self.plan.calibrated)
                except FlexIPError as error:  # no reason to lose what was trained
                    log.warning(f"{name} gets no dial: {error}")
        for name, adapter in adapters.items():
            training = {"adapter": taken[name], "before": before(name, self.start), "name": name}
            if reads_places(kind_and_seed(name)[0]):
                training |= {**steps_of(self.work, TOKENS), **steps_of(self.work, "keys")}
            save(self.work / ADAPTERS / f"{name}.safetensors", adapter, encoders, training, dials.get(name, ()))
        if (self.work / ADAPTERS / f"{EXPORTED}.safetensors").exists():
            export_model(self.work, self.work / "model")  # what `evaluate-adapters` measures the others beside
        return True


def _encoders(lessons: bool) -> tuple[str, ...]:
    """The stages whose networks encode a pool."""
    return ("vae",) if lessons else ("vae", "clip", "dino")
