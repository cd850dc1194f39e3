"""Encoder weights from a file into a module: whole, finite, one dtype; memory-mapped, so nothing is held twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import FlexIPError
from ..files.safefile import Header

METADATA_KEY = "flexip.encoder"
HASH_SAMPLES = 64
MAX_LAYERS, MAX_SIZE = 96, 65536
"""Far above any encoder (our choice): a damaged file must not ask for a million layers before its keys are compared."""


@dataclass(frozen=True)
class Spec:
    """The sizes of an encoder, the known one or from the file's own metadata.

    Attributes:
        name: for people and for the adapter file.
        config: keyword arguments of the library's own class or config.
        image_size: S, pixels.
        mean, std: the mean and the standard deviation of each of the three channels.
    """

    name: str
    config: Mapping[str, Any]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def own_spec(path: Path, header: Header, family: str) -> Spec | None:
    """The spec that a file carries in its metadata under `flexip.encoder`; None where it carries none.

    The value is JSON: {"family": "open_clip" | "dinov2", "config": {…}, "image_size": S, "mean": […], "std": […]}, with
    the keyword arguments of `open_clip.transformer.VisionTransformer` or of `transformers.Dinov2Config`; "name" may be
    added.

    Raises:
        FlexIPError: damaged metadata, or the other family.
    """
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        value = json.loads(text)
        found = value["family"]
        spec = Spec(
            str(value.get("name") or path.stem),
            dict(value["config"]),
            int(value["image_size"]),
            tuple(float(v) for v in value["mean"]),
            tuple(float(v) for v in value["std"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise FlexIPError(f"{path} has damaged metadata {METADATA_KEY} ({error!r}); get the file again") from error
    if found != family:
        raise FlexIPError(
            f"{path} is an encoder of the family {found}, but one of {family} is expected here; choose the other file"
        )
    if len(spec.mean) != 3 or len(spec.std) != 3 or spec.image_size < 1 or min(spec.std) <= 0:
        raise FlexIPError(f"{path} has damaged metadata {METADATA_KEY}: image size, mean or std out of range")
    for name, size in {"image_size": spec.image_size, **spec.config}.items():
        largest = MAX_LAYERS if "layers" in name else MAX_SIZE
        if isinstance(size, (int, float)) and size > largest:
            raise FlexIPError(
                f"{path} has damaged metadata {METADATA_KEY}: {name} is {size}, expected at most {largest}"
            )
    return spec


def assign_weights(module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Make the tensors the parameters of a module that was made on `meta`; eval mode, no gradients."""
    module.load_state_dict({key: value.to(dtype) for key, value in tensors.items()}, strict=True, assign=True)
    module.eval().requires_grad_(False)


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """An identity of the weights, 16 hex digits, the same in every file format and dtype that holds them exactly.

    SHA-256 over the key names in order, shapes, and about `HASH_SAMPLES` evenly spaced values of each tensor as
    float32. It tells encoders apart (training moves all values); it is no protection against forgery. Reading every
    byte of 2.5 GB for that would cost seconds at each load (our choice).
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        flat = tensors[key].detach().reshape(-1)
        step = max(1, flat.numel() // HASH_SAMPLES)
        digest.update(f"{key}|{tuple(tensors[key].shape)}|".encode())
        digest.update(flat[::step].float().cpu().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()[:16]
