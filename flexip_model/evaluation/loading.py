"""transformers' models from a local folder: safetensors alone, no code of the model's own, nothing downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..common.errors import FlexIPError
from ..encoders.weights import weights_hash
from ..files.safefile import load_tensors

ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError)


def load_model(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A model, in eval mode, without gradients.

    Raises:
        FlexIPError: the folder is of another form or model, or lacks weights, which would be random ones then.
    """
    import transformers

    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise FlexIPError(
            f"{folder} has no .safetensors file; pickles (pytorch_model.bin) are never opened here: take the "
            "safetensors form from the same source (some keep it in a pull request), or convert it where you trust it"
        )
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    name = "dtype" if version >= (4, 56) else "torch_dtype"
    try:
        model, info = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **{name: dtype},
        )
    except ERRORS as error:
        raise _refused(kind, folder, error) from error
    # DINO's files have no pooler, which transformers' class has and nobody here reads.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing or info["mismatched_keys"]:
        raise FlexIPError(
            f"{folder} lacks weights of {type(model).__name__}, first {(missing or list(info['mismatched_keys']))[0]}; "
            "get all of its files again"
        )
    return model.to(device).eval().requires_grad_(False)


def folder_hash(folder: Path) -> str:
    """`weights_hash` of all tensors in a folder's `.safetensors` files, as they lie there."""
    return weights_hash({k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_tensors(path).items()})


def load_part(kind: Any, folder: Path) -> Any:
    """A processor or tokenizer.

    Raises:
        FlexIPError: its files are not in the folder.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ERRORS as error:
        raise _refused(kind, folder, error) from error


def _refused(kind: Any, folder: Path, error: Exception) -> FlexIPError:
    return FlexIPError(f"{folder} cannot be loaded as {kind.__name__} ({' '.join(str(error).split())[:300]})")


def describe_processor(processor: Any) -> str:
    """An image processor's settings as one line, for the record."""
    settings = processor.to_dict()
    names = [
        "size",
        "pad_size",
        "min_pixels",
        "max_pixels",
        "resample",
        "crop_size",
        "do_center_crop",
        "image_mean",
        "image_std",
    ]
    kept = {name: settings[name] for name in names if settings.get(name) is not None}
    return f"{type(processor).__name__} {', '.join(f'{name}={value}' for name, value in kept.items())}"
