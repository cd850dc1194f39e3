"""The shipped folder: a diffusers pipeline, the two encoders and examples, all weights in fp16."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ...encoders import load_clip, load_dino
from ...files.safefile import write_tensors
from ...images.pictures import on_white
from ..scenes.compose import MIDDLE
from ..scenes.sources import read_assets
from ..scenes.words import Words
from .base import Base
from .encoders import names_in_files
from .networks import encoder_metadata, noise_schedule

ADAPTER_FILE = "flexip_demo.safetensors"
Encoders = dict[str, dict[str, str]]
"""Names and weights' hashes of the two encoders, as an adapter file tells them."""
ENCODER_FILES = {"open_clip": "clip_vision.safetensors", "dinov2": "dinov2.safetensors"}


def save_encoder(family: str, module: nn.Module, path: Path) -> str:
    """Write an encoder with the library's own keys and its sizes in the metadata; returns its weights_hash."""
    names = names_in_files(module)
    tensors = {names[k]: v.half().cpu().contiguous() for k, v in module.state_dict().items()}
    write_tensors(path, tensors, {"format": "pt", "flexip.encoder": json.dumps(encoder_metadata(family))})
    return (load_clip if family == "open_clip" else load_dino)(path).weights_hash


def write_base(
    folder: Path, *, vae: nn.Module, base: Base, tokenizer: Path, visual: nn.Module, dino: nn.Module
) -> Encoders:
    """Write every part of the shipped model but the adapter into `folder`; returns the encoders' names and hashes.

    Args:
        tokenizer: folder with CLIP's tokenizer files.
    """
    from diffusers import StableDiffusionPipeline

    folder.mkdir(parents=True, exist_ok=True)
    words = Words(tokenizer)
    pipeline: Any = StableDiffusionPipeline(
        vae=_half(vae),
        text_encoder=_half(base.text),
        tokenizer=words.tokenizer,
        unet=_half(base.unet),
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    for part in ("vae", "unet", "text_encoder"):
        _tidy(folder / part / "config.json")
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tokenizer, folder / "tokenizer")
    (folder / "encoders").mkdir(exist_ok=True)
    hashes = {
        family: save_encoder(family, module, folder / "encoders" / ENCODER_FILES[family])
        for family, module in (("open_clip", visual), ("dinov2", dino))
    }
    return {
        "clip": {"name": encoder_metadata("open_clip")["name"], "hash": hashes["open_clip"]},
        "retrieval": {"name": encoder_metadata("dinov2")["name"], "hash": hashes["dinov2"]},
    }


def _half(module: Any) -> Any:
    """A half-precision copy on the CPU; the module itself stays as it is."""
    import copy

    # A network in channels_last would be written in that order.
    return copy.deepcopy(module).to("cpu", torch.float16, memory_format=torch.contiguous_format)


def _tidy(config: Path) -> None:
    """transformers would load the text encoder in the file's fp16, while diffusers loads the others in fp32; and both
    write down the folder that a part was read from."""
    value = json.loads(config.read_text(encoding="utf-8"))
    value.pop("_name_or_path", None)
    for key in {"dtype", "torch_dtype"} & set(value):
        value[key] = "float32"
    config.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def save_examples(archive: Path, subjects: dict[str, str], folder: Path, side: int = 256) -> None:
    """Write reference pictures of held-out subjects, on white with a margin, as WebP.

    Args:
        archive: the package with the still 3D pictures.
        subjects: file name without suffix to the subject's code.
    """
    pictures = read_assets(archive, set(subjects.values()))
    folder.mkdir(parents=True, exist_ok=True)
    for name, code in subjects.items():
        with Image.open(io.BytesIO(pictures[code])) as image:
            subject = image.convert("RGBA").resize((side * 4 // 5, side * 4 // 5), Image.Resampling.LANCZOS)
        corner = ((side - subject.width) // 2, round(side * MIDDLE) - subject.height // 2)
        on_white(subject, (side, side), corner).save(folder / f"{name}.webp", quality=90)
