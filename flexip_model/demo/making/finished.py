"""What is made of the small model in a work folder: finished networks, adapter files, and the folder that ships."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...common.errors import FlexIPError
from ...encoders.clip import ClipEncoder
from ...encoders.weights import Spec
from ...files.adapter_file import load_adapter_file, save_adapter
from ...files.safefile import atomic, load_tensors, write_tensors
from ...images.preprocess import CLIP_MEAN, CLIP_STD
from ...method.adapters import Adapter, FlexIPAdapter
from ...train.calibrate import GATES, calibration_curve, picture_changes
from ..scenes.compose import ON_WHITE, Composer
from ..scenes.sources import PACKAGES
from ..scenes.words import Words
from ..stages import export, vae
from ..stages.base import Base
from ..stages.encoders import DinoTrainer, SightTrainer, names_in_files
from ..stages.networks import CLIP_VISION, ENCODER_SIDE, encoder_metadata
from ..stages.queries import Keys
from ..stages.reader import Reader
from ..stages.sampling import sample
from ..stages.vae import to_pixels
from .pool import Encoding
from .run import RECORD, steps_of

STORE, TOKENIZER, TEXT = "store", "tokenizer", "text_encoder"
"""Folders in a work folder: the looks, CLIP's tokenizer files, the frozen text encoder in transformers' layout."""
ADAPTERS = "adapters"
"""Its folder of adapter files."""
NETWORKS = ("vae", "clip", "dino", "base", "tokens", "places", "keys")
"""Stages that make a network; each has a folder of its name. `places` goes on with the base's."""
EXPORTED = "flexip-seed1"
"""The adapter that ships."""
DIAL_STEPS = 15
KINDS = "image and variant, three to one, gamma spread over the dial"
"""What the adapters' files tell of the batches."""


def weights_of(work: Path, stage: str) -> Path:
    """The file of a stage's finished network, in fp16."""
    return work / stage / "weights.safetensors"


def is_done(work: Path, stage: str) -> bool:
    """Whether a stage's network is finished; what `places` made stands for the base too, with which it went on."""
    return weights_of(work, stage).exists() or (stage == "base" and weights_of(work, "places").exists())


class Networks:
    """The small model's networks on a device.

    Args:
        work: has `TOKENIZER` and `TEXT`; networks that are finished there are loaded by `load`.
        start_vae: a VAE in diffusers' layout to begin from, in place of a new one.

    Raises:
        FlexIPError: tokenizer or text encoder are not made yet; there is no VAE in `start_vae`.
    """

    def __init__(self, work: Path, device: torch.device, start_vae: Path | None = None) -> None:
        from transformers import CLIPTextModel

        need(work / TOKENIZER / "vocab.json", "data")
        need(work / TEXT / "config.json", "names")
        self.work, self.device = work, device
        self.words = Words(work / TOKENIZER)
        self.base = Base(len(self.words.tokenizer))
        self.base.text = CLIPTextModel.from_pretrained(work / TEXT).float().eval().requires_grad_(False)
        self.base.to(device)
        self.vae: Any = (vae.build() if start_vae is None else vae.read(start_vae)).to(device)
        self.sight, self.dino = SightTrainer().to(device), DinoTrainer().to(device)
        self.reader, self.keys = Reader().to(device), Keys().to(device)

    def network(self, stage: str) -> nn.Module:
        """What a stage of `NETWORKS` makes."""
        found: dict[str, nn.Module] = {
            "vae": self.vae,
            "clip": self.sight,
            "dino": self.dino,
            "base": self.base.unet,
            "tokens": self.reader,
            "places": self.base.unet,
            "keys": self.keys,
        }
        return found[stage]

    def load(self, stage: str) -> bool:
        """Load a stage's finished network and freeze it; False if there is none."""
        path = weights_of(self.work, stage)
        if not path.exists():
            return False
        network = self.network(stage)
        tensors = load_tensors(path)
        network.load_state_dict({key: tensors[name] for key, name in names_in_files(network).items()})
        network.eval().requires_grad_(False)
        return True

    def finish(self, stage: str) -> None:
        """Write a stage's network in fp16, as it ships, and go on with just these values."""
        network = self.network(stage)
        names = names_in_files(network)
        tensors = {names[k]: _half(value.detach().cpu()).contiguous() for k, value in network.state_dict().items()}
        write_tensors(weights_of(self.work, stage), tensors, {"format": "pt"})
        self.load(stage)

    def encoding(self) -> Encoding:
        """The frozen networks that encode targets and references."""
        meta = encoder_metadata("open_clip")
        clip = ClipEncoder(Spec(meta["name"], CLIP_VISION, ENCODER_SIDE, CLIP_MEAN, CLIP_STD))
        clip.visual = self.sight.visual
        return Encoding(self.vae, clip.to(self.device).eval(), self.dino.encoder)

    def teach(self, adapter: FlexIPAdapter) -> None:
        """Give an adapter what was learned of P before adapters train."""
        self.reader.give(adapter)
        self.keys.give(adapter)

    def write_base(self, folder: Path) -> export.Encoders:
        """Write all but the adapter as it ships; see `export.write_base`."""
        return export.write_base(
            folder,
            vae=self.vae,
            base=self.base,
            tokenizer=self.work / TOKENIZER,
            visual=self.sight.visual,
            dino=self.dino.encoder,
        )

    def dial(self, adapter: Adapter, composer: Composer, subjects: int) -> tuple[float, ...]:
        """The calibration curve of an adapter, measured on this many of a composer's subjects."""
        changes, encoding = [], self.encoding()
        for number in range(subjects):
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
                steps=DIAL_STEPS,
                same_noise=True,
            )
            changes.append(picture_changes((to_pixels(pictures) + 1) / 2))
        return calibration_curve(changes)


def take_exported(folder: Path, work: Path) -> None:
    """Begin a work folder with what ships: tokenizer, text encoder and frozen networks of an exported folder, in place
    of the stages that made them. A stage that is finished in the work folder is kept; `tokens` and `keys`, which are in
    no exported folder, and what an encoder has for its training alone begin anew.

    Raises:
        FlexIPError: `export` wrote no such folder.
    """
    path = folder / export.ADAPTER_FILE
    if not path.is_file():
        raise FlexIPError(f"{path} is missing; expected a folder that `demo-model export` wrote, such as models/demo")
    steps = load_adapter_file(path)[0].training["steps"]
    for name in (TOKENIZER, TEXT):
        shutil.copytree(folder / name, work / name, dirs_exist_ok=True)
    networks = Networks(work, torch.device("cpu"), folder / "vae")
    parts = {
        networks.base.unet: folder / "unet" / "diffusion_pytorch_model.safetensors",
        networks.sight.visual: folder / "encoders" / export.ENCODER_FILES["open_clip"],
        networks.dino.encoder: folder / "encoders" / export.ENCODER_FILES["dinov2"],
    }
    for part, file in parts.items():
        tensors = load_tensors(file)
        part.load_state_dict({key: tensors[name] for key, name in names_in_files(part).items()})
    for stage in ("vae", "clip", "dino", "places" if "places" in steps else "base"):
        if not is_done(work, stage):
            networks.finish(stage)
    for stage in set(steps) & {"names", *NETWORKS} - {"tokens", "keys"}:
        record = work / stage / RECORD
        if not record.exists():
            told = {key: {stage: value} for key, value in steps[stage].items()}
            with atomic(record) as temporary:
                temporary.write_text(json.dumps(told), encoding="utf-8")


def _half(value: torch.Tensor) -> torch.Tensor:
    return value.half() if value.is_floating_point() else value


def need(path: Path, stage: str) -> None:
    """Check that an earlier stage has written a file.

    Raises:
        FlexIPError: it has not.
    """
    if not path.exists():
        raise FlexIPError(f"{path} is missing: run the stage `{stage}` first")


def save(
    path: Path, adapter: Adapter, encoders: export.Encoders, training: dict[str, Any], dial: tuple[float, ...]
) -> None:
    """Write a trained adapter's file, for the work folder."""
    save_adapter(
        path,
        replace(adapter.config, dial=dial),
        {key: value.detach().cpu() for key, value in adapter.state_dict().items()},
        training={"trained": True, "kinds": KINDS, "references": {"crop": "center", "white": ON_WHITE}, **training},
        encoders=encoders,
        title=f"small model, {path.stem}",
        license="Apache-2.0",
    )


def export_model(work: Path, out: Path, name: str = EXPORTED) -> None:
    """Write the folder that ships but for its examples: the finished networks of a work folder and one of its adapters,
    whose file tells the steps and batch of every stage and the data.

    Raises:
        FlexIPError: a stage is not finished; the adapter was trained beside other encoders.
    """
    networks = Networks(work, torch.device("cpu"))
    path = work / ADAPTERS / f"{name}.safetensors"
    for stage in NETWORKS:
        if not is_done(work, stage):
            need(weights_of(work, stage), "train")
        networks.load(stage)
    need(path, "train")
    info, tensors = load_adapter_file(path)
    encoders = networks.write_base(out)
    if {role: told["hash"] for role, told in encoders.items()} != {r: t["hash"] for r, t in info.encoders.items()}:
        raise FlexIPError(f"{path} was trained beside other encoders than those in {work}; train it again")
    recorded = [stage for stage in ("names", *NETWORKS) if (work / stage / RECORD).exists()]
    steps = {stage: steps_of(work, stage)[stage] for stage in recorded}
    steps["adapter"] = info.training["adapter"]
    if info.training.get("before"):
        steps["adapter_before"] = info.training["before"]
    training = {
        **info.training,
        "steps": steps,
        "data": [f"{p.name}@{p.version} ({p.license})" for p in PACKAGES],
    }
    training = {key: value for key, value in training.items() if key not in ("adapter", "before")}
    save_adapter(
        out / export.ADAPTER_FILE,
        info.config,
        tensors,
        training=training,
        encoders=encoders,
        title="FlexIP demo adapter",
        license="Apache-2.0",
    )
