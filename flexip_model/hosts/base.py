"""The parts of an SD1.5, a folder in diffusers' layout or a single file, read in one place for training and drawing."""

from __future__ import annotations

import warnings
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


def load_parts(
    place: str | Path, configs: str | Path | None = None, *, local_files_only: bool = False
) -> dict[str, Any]:
    """Load the parts of a folder, of a `.safetensors` checkpoint, or of a name on a hub, by name.

    Args:
        configs: for a checkpoint, a folder in diffusers' layout whose configs and tokenizer it takes; weights need not
            be in it.

    Raises:
        FlexIPError: a folder without a part, a checkpoint without configs or configs without a checkpoint, or a place
            that cannot be loaded.
    """
    is_file = Path(place).is_file()
    if not is_file and configs is not None:
        raise FlexIPError(
            f"the base {place} is no file, and configs ({configs}) were named for it, which only a single file needs; "
            "leave them out, or name a .safetensors checkpoint as the base"
        )
    try:
        return _from_file(Path(place), configs) if is_file else _from_folder(place, local_files_only)
    except FlexIPError:
        raise
    except Exception as error:  # of whatever kind diffusers, transformers and safetensors raise
        raise FlexIPError(
            f"the base {place} cannot be loaded ({' '.join(str(error).split())[:300]}); give "
            + ("a .safetensors checkpoint of SD1.5, or " if is_file else "")
            + "a folder of SD1.5 in diffusers' layout"
            + ("" if local_files_only or is_file else ", or its name on a hub that can be reached")
        ) from error


def _from_folder(place: str | Path, local_files_only: bool) -> dict[str, Any]:
    folder = Path(place)
    missing = [part for part in PARTS if folder.exists() and not (folder / part).is_dir()]
    if missing:
        raise FlexIPError(f"{folder} has no folder {missing[0]}; the base is an SD1.5 model in diffusers' layout")
    return {
        name: kind.from_pretrained(place, subfolder=name, local_files_only=local_files_only)
        for name, kind in part_classes().items()
    }


def _from_file(file: Path, configs: str | Path | None) -> dict[str, Any]:
    from safetensors import safe_open

    # diffusers would open any other file as a pickle.
    if file.suffix != ".safetensors":
        raise FlexIPError(f"the base {file} is no .safetensors file; get the .safetensors form of the same model")
    with safe_open(file, framework="pt"):
        pass
    folder = None if configs is None else Path(configs)
    if folder is None or not all((folder / part).exists() for part in (*PARTS, "model_index.json")):
        raise FlexIPError(
            f"{file} is a single file, which has no configs and no tokenizer; name a folder of SD1.5 in diffusers' "
            f"layout with --base-configs, in a run's config with base_configs (model_index.json, {', '.join(PARTS)}; "
            "its weights are not read)"
        )
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the pipeline's own scheduler, which is not used
        pipeline: Any = StableDiffusionPipeline.from_single_file(
            str(file), config=str(folder), local_files_only=True, safety_checker=None, feature_extractor=None
        )
    scheduler = part_classes()["scheduler"].from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    return {**{name: getattr(pipeline, name) for name in PARTS}, "scheduler": scheduler}


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
