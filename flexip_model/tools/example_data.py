"""What training is measured with: pictures made of the examples that ship, SD1.5's sizes on random weights."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..comfyui.process import PACK
from ..data.cache.encode import CacheTask, make_caches
from ..data.format import NewGroup, ShardWriter
from ..data.pack.pixels import QUALITY, RawFrame, make_frame
from ..method import sd15
from ..train.configs.options import TrainConfig
from .random_models import random_sd15_unet, sd15_vae
from .random_weights import write_encoders

DEMO = PACK / "models" / "demo"
ROOM = 1.25
"""Shorter side of the pictures over the side that is trained on: what `data pack` keeps by default (640 for 512)."""
FRAMES = 2
"""Frames of a variant group."""


def write_data(folder: Path, size: int, images: int, variants: int) -> Path:
    """A data folder of `images` groups of one frame and `variants` groups of two, JPEG, 4:3, each with a mask.

    Args:
        folder: made anew.
        size: side that is trained on, in pixels; the pictures are a quarter larger.
    """
    subjects = [Image.open(path).convert("RGB") for path in sorted((DEMO / "examples").glob("*.webp"))]
    writer = ShardWriter(folder, "examples", "Apache-2.0", note="made for a benchmark")
    for number in range(images + variants):
        rng = np.random.default_rng(number)
        subject = subjects[number % len(subjects)]
        kind, count = ("image", 1) if number < images else ("multiview", FRAMES)
        frames = [_frame(subject, round(size * ROOM), rng) for _ in range(count)]
        writer.add(NewGroup(f"examples-{number:05}", kind, tuple(frames)))
    writer.close()
    return folder


def grained(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Clouds with grain, whose bytes per pixel are a photograph's; `size` is width and height."""
    clouds = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(clouds) + grain).clip(0, 255).astype(np.uint8))


def _frame(subject: Image.Image, side: int, rng: np.random.Generator) -> Any:
    """An example somewhere on clouds with grain."""
    size = (side * 4 // 3, side)
    picture = grained(size, rng)
    edge = int(side * rng.uniform(0.5, 0.9))
    left, top = int(rng.integers(size[0] - edge + 1)), int(rng.integers(size[1] - edge + 1))
    pasted = subject.resize((edge, edge), Image.Resampling.BICUBIC)
    picture.paste(ImageOps.mirror(pasted) if rng.random() < 0.5 else pasted, (left, top))
    mask = Image.new("L", size)
    mask.paste(255, (left, top, left + edge, top + edge))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    whole = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    return make_frame(RawFrame(whole, mask, captions=("a thing on a colored ground, seen from nearby",)), side)[0]


def write_base(folder: Path) -> dict[str, str]:
    """SD1.5 in diffusers' layout and both encoders at their real sizes, 4.1 GB of random float16 weights.

    Tokenizer and scheduler are the demo model's.

    Returns:
        `base`, `clip` and `dino`, as a training config names them.
    """
    import torch
    from transformers import CLIPTextModel

    base = folder / "sd15_random"
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        random_sd15_unet().half().save_pretrained(base / "unet")
        torch.manual_seed(2)
        sd15_vae().half().save_pretrained(base / "vae")
        CLIPTextModel(sd15_text_config()).half().save_pretrained(base / "text_encoder")
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(DEMO / part, base / part)
    paths = {"base": base, "clip": folder / "vit_h_random.safetensors", "dino": folder / "dinov2_l_random.safetensors"}
    write_encoders(paths["clip"], paths["dino"])
    return {name: str(path) for name, path in paths.items()}


def sd15_text_config() -> Any:
    """The config of SD1.5's text encoder, CLIP ViT-L/14's."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=sd15.TEXT_VOCABULARY,
        hidden_size=sd15.CONTEXT_WIDTH,
        intermediate_size=sd15.TEXT_FEED_FORWARD,
        num_hidden_layers=sd15.TEXT_LAYERS,
        num_attention_heads=sd15.TEXT_HEADS,
        max_position_embeddings=sd15.TEXT_LENGTH,
        hidden_act="quick_gelu",
    )


def cache(config: TrainConfig, dino: bool = False) -> None:
    """Latents and [CLS] of the config's data, made as `data cache` makes them; with `dino` the patch features too."""
    dtype = "bfloat16" if config.precision == "bf16" else "float32"
    flips = config.references.flip_image + config.references.flip_variant > 0
    for folder in config.data:
        make_caches(
            CacheTask(
                Path(folder),
                vae=config.vae or config.base,
                vae_configs=config.base_configs,
                clip=config.clip,
                dino=config.dino if dino else None,
                size=config.size,
                crop=config.references.crop,
                flips=flips,
                dtype=dtype,
            )
        )
