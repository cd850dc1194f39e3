"""Load FlexIP Demo Model: everything that ships with the pack, in one node."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image, ImageOps

from ..flexip_model.common.errors import FlexIPError
from ..flexip_model.encoders import Encoders, load_clip, load_dino
from ..flexip_model.files.adapter_file import load_adapter_file
from ..flexip_model.images.pictures import on_white
from .host import fields
from .loading.diffusers_folder import load_clip_text, load_unet, load_vae
from .loading.folders import fingerprint
from .wires import FlexIPAdapterType, FlexIPEncoders, manage_adapter, manage_encoders

CATEGORY = "FlexIP"
FOLDER = Path(__file__).resolve().parent.parent / "models" / "demo"
ADAPTER = "flexip_demo.safetensors"
PICTURES = (".png", ".webp", ".jpg")
NO_EXAMPLE = "(none)"


def examples() -> list[str]:
    """Names of the reference pictures that ship with the model; never empty."""
    folder = FOLDER / "examples"
    found = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICTURES) if folder.is_dir() else []
    return found or [NO_EXAMPLE]


def load_example(name: str) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1]; transparent parts on white.

    Raises:
        FlexIPError: no such picture among those that ship.
    """
    if name not in examples() or name == NO_EXAMPLE:
        raise FlexIPError(f'there is no example "{name}" in {FOLDER / "examples"}; choose one of the list')
    with Image.open(FOLDER / "examples" / name) as file:
        picture = on_white(ImageOps.exif_transpose(file))
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]


class FlexIPLoadDemo(io.ComfyNode):
    """The tiny trained system that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = examples()
        return io.Schema(
            node_id="FlexIPLoadDemo",
            display_name="Load FlexIP Demo Model",
            category=CATEGORY,
            description="Loads the small model that ships with this pack: text-to-image base, encoders and a trained "
            "FlexIP adapter. No download. It draws at 128×128 and knows emoji-like subjects on simple scenes.",
            inputs=[
                io.Combo.Input(
                    "example",
                    options=names,
                    default=names[0],
                    tooltip="A reference picture that ships with the model, given out as example. None of them was "
                    "seen in training.",
                )
            ],
            outputs=[
                io.Model.Output("model", tooltip="The base model: Stable Diffusion 1.5's architecture, narrower."),
                io.Clip.Output("clip", tooltip="Its text encoder."),
                io.Vae.Output("vae", tooltip="Its VAE, factor 8 with 4 channels."),
                FlexIPEncoders.Output("encoders", display_name="encoders", tooltip="Its two image encoders."),
                FlexIPAdapterType.Output("adapter", display_name="adapter", tooltip="Its FlexIP adapter."),
                io.Image.Output("image", display_name="example", tooltip="The chosen example picture."),
            ],
            **fields(io.Schema, search_aliases=["small model", "tiny model", "checkpoint without download"]),
        )

    @classmethod
    def validate_inputs(cls, example: str) -> bool | str:
        if not (FOLDER / ADAPTER).is_file():
            return f"the model that ships with the pack is missing from {FOLDER}; get the pack again, with its models"
        return True if example in examples() else f'there is no example "{example}"; choose one of the list'

    @classmethod
    def fingerprint_inputs(cls, example: str) -> str:
        return fingerprint(FOLDER / ADAPTER)

    @classmethod
    def execute(cls, example: str) -> io.NodeOutput:
        progress = comfy.utils.ProgressBar(4)
        parts = []
        for load in (load_unet, load_clip_text, load_vae):
            parts.append(load(FOLDER))
            progress.update(1)
            comfy.model_management.throw_exception_if_processing_interrupted()
        folder = FOLDER / "encoders"
        encoders = Encoders(load_clip(folder / "clip_vision.safetensors"), load_dino(folder / "dinov2.safetensors"))
        info, tensors = load_adapter_file(FOLDER / ADAPTER)
        progress.update(1)
        return io.NodeOutput(
            *parts, manage_encoders(encoders), manage_adapter(info, tensors, ADAPTER), load_example(example)
        )
