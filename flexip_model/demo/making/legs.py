"""The small model trained in legs: each goes on where the one before ended, on a card or a processor.

What comes in (`bring`): store, tokenizer and text encoder. What goes out: the frozen base with its encoders as a
diffusers folder, and the adapters.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...encoders.clip import ClipEncoder
from ...encoders.weights import Spec
from ...files.adapter_file import build_adapter, load_adapter_file, save_adapter
from ...files.safefile import load_tensors, write_tensors
from ...images.contact_sheet import draw_cells
from ...images.preprocess import CLIP_MEAN, CLIP_STD
from ...train.calibrate import GATES, calibration_curve, picture_changes
from ..scenes.compose import Composer
from ..scenes.store import Store
from ..scenes.words import LENGTH as TEXT_LENGTH
from ..scenes.words import Words
from ..stages import export, vae
from ..stages.base import Base
from ..stages.encoders import DinoTrainer, SightTrainer
from ..stages.networks import CLIP_VISION, ENCODER_SIDE, encoder_metadata
from ..stages.sampling import sample
from ..stages.vae import to_pixels
from .adapting import train_adapters
from .drawing import train_base
from .drawn import CHUNK, Drawer, Drawing, Drawn, join
from .kinds import CONFIGS, VARIATIONS
from .packed import unpack
from .painter import Painter
from .pictures import Targets, train_dino, train_sight, train_vae
from .pool import Encoding, Pool, fill
from .stepper import Pace, steps_of

log = logging.getLogger(__name__)

STORE, TOKENIZER, TEXT = "store.zip", "tokenizer", "text_encoder"
"""What is brought: the looks, CLIP's tokenizer files, the frozen text encoder in transformers' layout."""
STAGES = ("vae", "clip", "dino", "base", "adapters")
SCENE_VARIANTS = 48
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


@dataclass(frozen=True)
class Plan:
    """Times, batches and counts.

    Attributes:
        vae, clip, dino, base, adapters: how each is trained.
        targets: painted for the encoders and adapters.
        lessons: painted for the base.
        calibrated: trained subjects on which a dial is measured.
        names: the adapters that are trained, KIND-seedN.
    """

    vae: Pace = field(default_factory=lambda: Pace(150, 64, lr=6e-4, decay_from=0.3, ema=0.998))
    clip: Pace = field(default_factory=lambda: Pace(50, 256, ema=0.995, warmup=50))
    dino: Pace = field(default_factory=lambda: Pace(60, 128, ema=0.995, warmup=50))
    base: Pace = field(default_factory=lambda: Pace(480, 512, lr=1.2e-3, warmup=300, ema=0.9995))
    adapters: Pace = field(default_factory=lambda: Pace(400, 256, warmup=100))
    targets: int = 100_000
    lessons: int = 300_000
    calibrated: int = 32
    names: tuple[str, ...] = field(
        default=(
            *(f"{kind}-seed{seed}" for seed in (1, 2, 3) for kind in CONFIGS),
            *(f"{name}-seed1" for name in VARIATIONS if name != "flexip"),
        )
    )


class Legs:
    """Stages in order; each starts from what the ones before left in `work`.

    Args:
        bring: folder with `STORE`, `TOKENIZER` and `TEXT`.
        start_vae: a VAE in diffusers' layout to begin from.
        work: states and finished weights.
        seconds: until this leg ends.
        processes: that draw recipes.
    """

    def __init__(
        self, bring: Path, start_vae: Path, work: Path, plan: Plan, *, seconds: float, processes: int | None = None
    ) -> None:
        from transformers import CLIPTextModel

        self.bring, self.start_vae, self.work, self.plan = bring, start_vae, work, plan
        self.deadline = time.monotonic() + seconds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(1)
        work.mkdir(parents=True, exist_ok=True)
        self._drawer = Drawer(processes or os.cpu_count() or 1)
        self._futures = {
            lessons: self._drawer.start(
                Drawing(bring / STORE, bring / TOKENIZER, lessons, seed=7 if lessons else 5),
                plan.lessons if lessons else plan.targets,
            )
            for lessons in (False, True)
        }
        self.words = Words(bring / TOKENIZER)
        self.store = unpack(bring / STORE)
        self.base = Base(len(self.words.tokenizer))
        self.base.text = CLIPTextModel.from_pretrained(bring / TEXT).float().eval().requires_grad_(False)
        self.base.to(self.device)
        self.painter = Painter(self.store, self.device, SCENE_VARIANTS)
        self.vae = vae.read(start_vae).to(self.device)
        self.sight, self.dino = SightTrainer().to(self.device), DinoTrainer().to(self.device)

    def close(self) -> None:
        self._drawer.close()

    def go(self, until: str = "adapters") -> bool:
        """All stages up to one of `STAGES`; False if the leg ended before they were done."""
        wanted = STAGES[: STAGES.index(until) + 1]
        return all(getattr(self, f"_{stage}")() for stage in wanted)

    def _drawn(self, lessons: bool, at_least: int | None = None) -> Drawn:
        futures = self._futures[lessons]
        if at_least is not None:
            futures = futures[: max(1, -(-at_least // CHUNK))]
        return join([future.result() for future in futures])

    def _targets(self) -> Targets:
        drawn = self._drawn(False, 20_000)
        rows = {kind: torch.from_numpy(getattr(drawn, kind)).to(self.device) for kind in ("targets", "variant")}
        ids = torch.full((len(drawn), drawn.ids.shape[1], TEXT_LENGTH), self.words.tokenizer.pad_token_id)
        ids[..., : drawn.ids.shape[2]] = torch.from_numpy(drawn.ids).long()
        return Targets(self.painter, rows, ids.to(self.device))

    def _stage(self, name: str, module: torch.nn.Module, train: Any) -> bool:
        """Load a stage's finished weights, or train them and write them down."""
        path = self.work / name / "weights.safetensors"
        if path.exists():
            module.load_state_dict(load_tensors(path))
            module.eval().requires_grad_(False)
            return True
        log.info(f"== {name}, {self.deadline - time.monotonic():.0f} s of this leg left")
        if not train():
            return False
        module.eval().requires_grad_(False)
        tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
        write_tensors(path, tensors, {"format": "pt"})
        return True

    def _vae(self) -> bool:
        done = self._stage(
            "vae", self.vae, lambda: train_vae(self.vae, self._targets(), self.plan.vae, self.work, self.deadline)
        )
        self.vae.float()
        return done

    def _clip(self) -> bool:
        @torch.no_grad()
        def pooled(ids: Tensor) -> Tensor:
            state: Tensor = self.base.text(ids).pooler_output
            return state

        return self._stage(
            "clip",
            self.sight,
            lambda: train_sight(self.sight, pooled, self._targets(), self.plan.clip, self.work, self.deadline),
        )

    def _dino(self) -> bool:
        return self._stage(
            "dino",
            self.dino,
            lambda: train_dino(self.dino, self.vae, self._targets(), self.plan.dino, self.work, self.deadline),
        )

    def _encoding(self) -> Encoding:
        meta = encoder_metadata("open_clip")
        clip = ClipEncoder(Spec(meta["name"], CLIP_VISION, ENCODER_SIDE, CLIP_MEAN, CLIP_STD))
        clip.visual = self.sight.visual
        return Encoding(self.vae, clip.to(self.device).eval(), self.dino.encoder)

    def _pool(self, lessons: bool) -> Pool:
        begun, drawn = time.monotonic(), self._drawn(lessons)
        waited = time.monotonic() - begun
        pad = self.words.tokenizer.pad_token_id
        pool = fill(self.painter, drawn, self._encoding(), pad, references=not lessons)
        took = time.monotonic() - begun - waited
        log.info(f"{len(pool)} targets: waited {waited:.0f} s for recipes, painted and encoded in {took:.0f} s")
        return pool

    def _base(self) -> bool:
        done = self._stage(
            "base",
            self.base.unet,
            lambda: train_base(self.base, self._pool(True), self.plan.base, self.work, self.deadline),
        )
        if done:
            self.sheet().save(self.work / "base" / "sheet.png")
        return done

    def sheet(self) -> Any:
        """`LOOKS` drawn by the base, eight a row."""
        pictures = sample(self.base, self.vae, self.words, LOOKS, steps=20)
        return draw_cells([("", picture) for picture in pictures], 8)

    def _adapters(self) -> bool:
        if (self.work / "adapters" / "done").exists():
            return True
        log.info(f"== adapters, {self.deadline - time.monotonic():.0f} s of this leg left")
        encoding, pool = self._encoding(), self._pool(False)
        black = encoding.visual(torch.zeros(1, 3, ENCODER_SIDE, ENCODER_SIDE, device=self.device), hidden=True).hidden
        null = {name: torch.zeros_like(value[:1]).float() for name, value in pool.references["same"].items()}
        null["hidden"] = black.detach().float()
        adapters = train_adapters(
            self.base,
            pool,
            null,
            wanted=self.plan.names,
            pace=self.plan.adapters,
            work=self.work,
            deadline=self.deadline,
        )
        if adapters is None:
            return False
        self._export(adapters, encoding)
        (self.work / "adapters" / "done").write_text("", encoding="utf-8")
        return True

    def _export(self, adapters: dict[str, Any], encoding: Encoding) -> None:
        """The base's folder and the adapters' files."""
        folder, taken = self.work / "model", steps_of(self.work, "adapters")
        info = {
            "trained": True,
            "kinds": "image and variant, half and half, gamma spread over the dial",
            "steps": {name: steps_of(self.work, name) for name in ("vae", "clip", "dino", "base")},
        }
        parts = {"vae": self.vae, "base": self.base, "visual": self.sight.visual, "dino": self.dino.encoder}
        for part in parts.values():
            part.to("cpu", memory_format=torch.contiguous_format)
        first = next(iter(adapters.values())) if "flexip-seed1" not in adapters else adapters["flexip-seed1"]
        encoders = export.export(
            folder, **parts, tokenizer=self.bring / TOKENIZER, adapter=first.cpu().state_dict(), training=info
        )
        for part in parts.values():
            part.to(self.device)
        for name, adapter in adapters.items():
            training = {**info, "adapter": taken[name], "name": name}
            path = self.work / "adapters" / f"{name}.safetensors"
            save_adapter(
                path,
                adapter.config,
                {key: value.cpu() for key, value in adapter.state_dict().items()},
                training=training,
                encoders=encoders,
                title=f"small model, {name}",
                license="Apache-2.0",
            )
        for name in adapters:
            if name.startswith("flexip-seed"):
                self._calibrate(self.work / "adapters" / f"{name}.safetensors")

    def _calibrate(self, path: Path) -> None:
        """Measure the dial of an adapter file and write it into the file."""
        info, tensors = load_adapter_file(path)
        adapter = build_adapter(info, {key: value.float() for key, value in tensors.items()})
        dial = self._dial(adapter.to(self.device))
        save_adapter(
            path,
            replace(info.config, dial=dial),
            tensors,
            training=info.training,
            encoders=info.encoders,
            title=f"small model, {path.stem}",
            license="Apache-2.0",
        )

    def _dial(self, adapter: Any) -> tuple[float, ...]:
        """The calibration curve, measured on trained subjects."""
        composer = Composer(Store(self.store.pixels, self.store.looks).split(heldout=False), SCENE_VARIANTS)
        changes, encoding = [], self._encoding()
        for number in range(self.plan.calibrated):
            rng = np.random.default_rng((9, number))
            recipe = composer.recipe(rng, recolor=0)
            reference = replace(composer.same(recipe, rng), background="plain:white")
            seen = encoding.features(to_pixels([composer.picture(reference)]).to(self.device))
            count = len(GATES)
            pictures = sample(
                self.base,
                self.vae,
                self.words,
                [composer.prompt(recipe, rng)] * count,
                adapter=adapter,
                features=(seen["cls"].expand(count, -1), seen["patches"].expand(count, -1, -1)),
                gammas=GATES,
                seed=number,
                steps=15,
                same_noise=True,
            )
            changes.append(picture_changes((to_pixels(pictures) + 1) / 2))
        return calibration_curve(changes)


def plan_of(text: str, plan: Plan | None = None) -> Plan:
    """A plan with the seconds, batches and counts that a JSON object names, such as
    `{"vae": {"seconds": 2}, "targets": 2048}`."""
    plan = plan or Plan()
    changes: dict[str, Any] = {}
    for key, value in json.loads(text).items():
        if isinstance(value, dict):
            changes[key] = replace(getattr(plan, key), **value)
        else:
            changes[key] = tuple(value) if isinstance(value, list) else value
    return replace(plan, **changes)
