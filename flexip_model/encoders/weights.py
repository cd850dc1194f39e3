"""Encoder weights from a file into a module: whole, finite, one dtype; memory-mapped, so nothing is held twice."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FlexIPError
from ..safefile import Header
from .formats import Parts

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
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
        mean, std: of the three channels.
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


def check_parts(path: Path, header: Header, parts: Parts, module: nn.Module) -> torch.dtype:
    """Compare the file with the module, made on `meta`, before a tensor is read.

    Returns:
        The dtype that most of the tensors have; the module gets this one.

    Raises:
        FlexIPError: missing, extra, wrongly shaped or quantised tensors; the first is named.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing, extra = sorted(set(expected) - set(parts)), sorted(set(parts) - set(expected))
    if missing:
        raise FlexIPError(f"{path} lacks {len(missing)} of {len(expected)} tensors, first {missing[0]}")
    if extra:
        raise FlexIPError(f"{path} has {len(extra)} tensors too many, first {extra[0]}")
    dtypes: Counter[str] = Counter()
    for name, part in parts.items():
        found = part.shape(header)
        if found != expected[name]:
            raise FlexIPError(
                f"{path}: {part.keys[0]} has shape {list(header.tensors[part.keys[0]].shape)}, "
                f"which does not give {name} its shape {list(expected[name])}"
            )
        for key in part.keys:
            dtype = header.tensors[key].dtype
            if dtype not in DTYPES:
                raise FlexIPError(
                    f"{path}: {key} is {dtype}; expected one of {', '.join(DTYPES)}: get the file unquantised"
                )
            dtypes[dtype] += 1
    return DTYPES[dtypes.most_common(1)[0][0]]


def read_parts(path: Path, parts: Parts) -> dict[str, Tensor]:
    """The tensors in the pack's own form, memory-mapped where the file holds them as they are needed.

    Raises:
        FlexIPError: safetensors refuses the file; NaN or infinite values.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: part.build(file.get_tensor) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise FlexIPError(f"{path} cannot be read as safetensors ({error}); get it again") from error
    for name, value in tensors.items():
        if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(value)):
            raise FlexIPError(f"{path}: {name} holds NaN or infinite values; the file is damaged, get it again")
    return tensors


def fill(module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
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
