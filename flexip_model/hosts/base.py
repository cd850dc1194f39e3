"""The parts of an SD1.5 in diffusers' layout, read in one place for training and for drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..common.errors import FlexIPError

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def part_classes() -> dict[str, Any]:
    """diffusers' and transformers' class of each of `PARTS`."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    classes = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTokenizer, DDPMScheduler)
    return dict(zip(PARTS, classes, strict=True))


def load_parts(place: str | Path, *, local_files_only: bool = False) -> dict[str, Any]:
    """Load the parts of a folder, or of a name on a hub, by name.

    Raises:
        FlexIPError: a folder without a part, or one that cannot be loaded.
    """
    from safetensors import SafetensorError

    folder = Path(place)
    missing = [part for part in PARTS if folder.exists() and not (folder / part).is_dir()]
    if missing:
        raise FlexIPError(f"{folder} has no folder {missing[0]}; the base is an SD1.5 model in diffusers' layout")
    try:
        return {
            name: kind.from_pretrained(place, subfolder=name, local_files_only=local_files_only)
            for name, kind in part_classes().items()
        }
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise FlexIPError(
            f"the base {place} cannot be loaded ({' '.join(str(error).split())[:300]}); give a folder of SD1.5 in "
            "diffusers' layout" + ("" if local_files_only else ", or its name on a hub that can be reached")
        ) from error


def freeze_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """The same parts: networks in fp32 and eval mode, without gradients.

    Raises:
        FlexIPError: the base predicts neither ε nor v.
    """
    for name in ("unet", "vae", "text_encoder"):
        parts[name].float().eval().requires_grad_(False)
    prediction = parts["scheduler"].config.prediction_type
    if prediction not in ("epsilon", "v_prediction"):
        raise FlexIPError(f"the base predicts {prediction}; expected ε or v")
    return parts
