"""The stages of making the small model, each reading from and writing into one folder."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import FlexIPError
from .stages.recipe import CALIBRATED, GROUPS, PLANS, Plan

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from .base.lessons import Lessons
    from .scenes.compose import Composer
    from .scenes.words import Words

EXAMPLES = {
    "sheep": "1f411",
    "turtle": "1f422",
    "wolf": "1f43a",
    "cupcake": "1f9c1",
    "tomato": "1f345",
    "house": "1f3e0",
}
"""Reference pictures that ship: held-out subjects."""
SHIPPED = Path(__file__).parents[2] / "models" / "demo"


class Workshop:
    """The stages, each reading from and writing into one folder.

    Args:
        work: downloads, store, tokenizer, latents and one state folder per trained stage.
        out: where `export` writes.
        plans: of the trained stages.
        vae: a VAE that is made, in diffusers' layout, in place of the stage's.
    """

    def __init__(self, work: Path, out: Path, plans: Mapping[str, Plan] = PLANS, vae: Path | None = None) -> None:
        self.work, self.out, self.plans, self.made_vae = work, out, plans, vae

    def composer(self, heldout: bool = False) -> Composer:
        """A composer over the training subjects, or over the held-out ones."""
        from .scenes.compose import Composer
        from .scenes.store import Store

        self._need(self.work / "store" / "looks.json", "data")
        return Composer(Store.open(self.work / "store").split(heldout))

    def words(self) -> Words:
        from .scenes.words import Words

        self._need(self.work / "tokenizer" / "vocab.json", "data")
        return Words(self.work / "tokenizer")

    def _need(self, path: Path, stage: str) -> None:
        if not path.exists():
            raise FlexIPError(f"{path} is missing: run the stage `{stage}` first")

    def _state(self, stage: str, made_by: str) -> Path:
        self._need(self.work / stage / "checkpoints", made_by)
        return self.work / stage

    def data(self) -> None:
        """Packages, subject store and tokenizer."""
        from .scenes.store import build
        from .scenes.words import write_tokenizer

        build(self.work / "downloads", self.work / "store")
        write_tokenizer(self.composer().store, self.work / "tokenizer")

    def heldout(self) -> Path:
        """Draw the list of held-out drawings anew, as `heldout.json` was; returns the file."""
        self._need(self.work / "store" / "looks.json", "data")
        from .scenes.store import Store, write_heldout

        path = self.work / "heldout.json"
        write_heldout(Store.open(self.work / "store"), path)
        return path

    def vae(self) -> None:
        from .stages import vae

        vae.run(self.composer(), self.plans["vae"], self.work / "vae")

    def _encoding(self):
        """Composer, VAE and encoders, as `cache.fill` needs them in each process."""
        from .stages.encoders import Features, load_dino

        return self.composer(), self._vae(), Features(self._visual(), load_dino(self._state("dino", "encoders")))

    def _vae(self):
        from .stages import vae

        if self.made_vae is not None:
            return vae.read(self.made_vae)
        return vae.load(self._state("vae", "vae"), self.composer())

    def _visual(self):
        """The CLIP-like picture tower."""
        from .stages.encoders import load_clip

        return load_clip(self.words(), self._state("clip", "encoders")).visual

    def names(self) -> None:
        from .base.names import run_names

        run_names(self.composer().store, self.words(), self.plans["names"], self.work / "names")

    def _lessons(self) -> Lessons:
        from .base.lessons import Lessons

        return Lessons(self.composer().store)

    def _lesson_parts(self):
        return self._lessons(), self._vae(), None

    def lessons(self, pictures: int, processes: int) -> None:
        """Targets of the stage `base`."""
        from .stages import cache

        cache.fill(self._lesson_parts, self.work / "lessons", count=pictures, processes=processes, seed=7)

    def base(self) -> None:
        """The base alone."""
        from .base.drawing import Drawing, new_base, run_base
        from .base.names import load_text
        from .stages.cache import Cache

        self._need(self.work / "lessons", "lessons")
        words, lessons = self.words(), self._lessons()
        text = load_text(self.composer().store, words, self._state("names", "names"))
        run_base(
            Drawing(
                new_base(words, text),
                self._vae(),
                lessons=lessons,
                cache=Cache.open(self.work / "lessons"),
                words=words,
                plan=self.plans["base"],
                folder=self.work / "base",
            )
        )

    def latents(self, pictures: int, processes: int) -> None:
        from .stages import cache

        cache.fill(self._encoding, self.work / "latents", count=pictures, processes=processes)

    def encoders(self) -> None:
        from .stages.encoders import run_clip, run_dino

        run_clip(self.composer(), self.words(), self.plans["clip"], self.work / "clip")
        run_dino(self.composer(), self._vae(), self.plans["dino"], self.work / "dino")

    def _source(self):
        from .stages.cache import Cache
        from .stages.training import Source

        self._need(self.work / "latents", "latents")
        return Source(self.composer(), Cache.open(self.work / "latents"), self.words())

    def tokens(self) -> None:
        from .stages.tokens import run_tokens

        run_tokens(self._source().cache, self.plans["tokens"], self.work / "tokens")

    def together(self) -> None:
        from .stages.encoders import load_clip
        from .stages.tokens import load_tokens
        from .stages.training import Together, run_together

        source = self._source()
        model = Together(len(source.words.tokenizer), load_tokens(self._state("tokens", "tokens")))
        model.base.text.load_state_dict(load_clip(self.words(), self._state("clip", "encoders")).text.state_dict())
        model.copy_text_attention()
        run_together(source, model, self.plans["together"], self.work / "together")

    def adapter(self, steps: int, processes: int) -> None:
        """The adapter alone, by the trainer (`python -m flexip_model train`), beside the base that is now frozen."""
        from ..data.cache.encode import CacheTask, make_caches
        from .scenes import packing
        from .stages import training
        from .stages.export import ADAPTER_FILE, ENCODER_FILES

        base, data, output = self.work / "frozen", self.work / "packed", self.work / "adapter"
        together = training.load_together(self.words(), self._state("together", "together"))
        self._write(base, together, together.adapter.state_dict(), {"trained": True, "steps": self._steps()})
        clip, dino = (str(base / "encoders" / ENCODER_FILES[family]) for family in ("open_clip", "dinov2"))
        if not (data / "index" / f"{packing.NAME}.parquet").exists():
            packing.pack(self.composer(), data, GROUPS)
        make_caches(CacheTask(data, str(base), clip, dino, size=128, crop="center", flips=True), processes)
        config = {
            "extends": "demo",
            "base": str(base),
            "clip": clip,
            "dino": dino,
            "data": [str(data)],
            "output": str(output),
            "start": str(base / ADAPTER_FILE),
            "stages": [{"steps": steps}],
            "warmup": min(20, steps),
            "batch": self.plans["together"].batch,
        }
        path = self.work / "adapter.yaml"
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(launch if processes > 1 else []), "-m", "flexip_model.train", str(path)]
        env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} if processes > 1 else None
        done = subprocess.run(command, cwd=SHIPPED.parents[1], env=env)
        if done.returncode:
            raise FlexIPError(f"the trainer ended with {done.returncode}; its last lines say why")

    def _steps(self) -> dict[str, int]:
        """Steps of every stage that has a state."""
        from ..train.shared.state import list_steps

        found = {stage: list_steps(self.work / stage / "checkpoints") for stage in (*self.plans, "adapter")}
        return {stage: steps[-1] for stage, steps in found.items() if steps}

    def _write(self, folder: Path, together, adapter, training_info: dict, dial: tuple[float, ...] = ()) -> None:
        from .scenes.sources import PACKAGES
        from .stages import encoders, export
        from .stages.cache import PART

        parts = len(list((self.work / "latents").glob("part-*.safetensors")))
        info = {
            "pictures": parts * PART,
            "data": [f"{p.name}@{p.version} ({p.license})" for p in PACKAGES],
            "kinds": "image and variant, half and half, gamma spread over the dial",
            "references": {"crop": "center", "white": 0.5},
            **training_info,
        }
        export.export(
            folder,
            vae=self._vae(),
            base=together.base,
            tokenizer=self.work / "tokenizer",
            visual=self._visual(),
            dino=encoders.load_dino(self._state("dino", "encoders")),
            adapter=adapter,
            training=info,
            dial=dial,
        )

    def export(self) -> None:
        """Calibrate the dial on trained subjects and write the shipped folder; the adapter's file says how long each
        stage trained."""
        from ..method.adapters import FlexIPAdapter
        from ..train.calibrate import calibrate
        from ..train.configs.read import from_dict
        from .scenes.sources import STATIC, fetch
        from .stages import export, training
        from .stages.networks import ADAPTER
        from .stages.stage import newest

        found = newest(self.work / "adapter")
        adapter = FlexIPAdapter(ADAPTER)
        adapter.load_state_dict(found.parts["ema"])
        config = from_dict(found.info["config"])
        dial = calibrate(config, adapter.eval(), CALIBRATED)
        together = training.load_together(self.words(), self._state("together", "together"))
        info = {
            "trained": True,
            "steps": self._steps(),
            "dial": {"subjects": CALIBRATED, **asdict(config.dial)},
        }
        self._write(self.out, together, found.parts["ema"], info, dial)
        export.save_examples(fetch(STATIC, self.work / "downloads"), EXAMPLES, self.out / "examples")
        log.info(f"{self.out}: {export.folder_bytes(self.out) / 1e6:.1f} MB")
