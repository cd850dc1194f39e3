"""The adapter file: one `.safetensors`, keys name site and branch, the header says what it is (format version 1).

Metadata keys:
    flexip.format_version   "1"
    flexip.config           `FlexIPConfig.to_json`
    flexip.encoders         JSON {"clip": {"name", "hash"}, "retrieval": {"name", "hash"}}; hash may be ""
    flexip.training         JSON {"trained": bool, …}: steps, data, licenses, source; free beyond `trained`;
                            "references": {"crop", "white"}, how references were shown (see `AdapterInfo`)
    modelspec.*             Stability's ModelSpec 1.0.0
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import FlexIPError
from ..method.adapters import Adapter, adapter_class, create_adapter
from ..method.config import FlexIPConfig
from .identify import advice, identify
from .safefile import Header, load_tensors, read_header, write_tensors

FORMAT_VERSION = "1"
FLOAT_DTYPES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter file says of itself.

    Attributes:
        config: sizes.
        trained: false for a bootstrap; such an adapter must not make pictures in silence.
        training: steps, data, licenses, where it came from.
        encoders: names and hashes of the encoders that it belongs to.
        metadata: the whole header metadata.
    """

    config: FlexIPConfig
    trained: bool
    training: dict[str, Any] = field(default_factory=dict)
    encoders: dict[str, dict[str, str]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def crop(self) -> str | None:
        """How references were made square in training (`images.preprocess.CROPS`); None where the file does not say."""
        found = self._references.get("crop")
        return found if isinstance(found, str) else None

    @property
    def white(self) -> float | None:
        """The share of references with a known mask that were shown on white; None where the file does not say."""
        found = self._references.get("white")
        return float(found) if isinstance(found, (int, float)) else None

    @property
    def _references(self) -> dict[str, Any]:
        found = self.training.get("references")
        return found if isinstance(found, dict) else {}


def expected_shapes(config: FlexIPConfig) -> dict[str, tuple[int, ...]]:
    """Every key of an adapter with this config and its shape: the file's contract."""
    with torch.device("meta"):
        adapter = create_adapter(config)
    return {key: tuple(value.shape) for key, value in adapter.state_dict().items()}


def save_adapter(
    path: str | Path,
    config: FlexIPConfig,
    state_dict: Mapping[str, Tensor],
    *,
    training: Mapping[str, Any],
    encoders: Mapping[str, Mapping[str, str]] | None = None,
    title: str = "FlexIP adapter",
    license: str = "",
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write an adapter file atomically: a temporary name beside it, synced, then renamed.

    Args:
        path: ends in `.safetensors`.
        state_dict: `Adapter.state_dict()`, any float dtype; written as `dtype`.
        training: must hold `trained` (bool); everything else is free JSON.

    Raises:
        FlexIPError: `trained` is missing, keys or shapes are not the config's, a value is not finite in `dtype`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise FlexIPError(f"an adapter is saved as .safetensors, not as {path.name}")
    if not isinstance(training.get("trained"), bool):
        raise FlexIPError("an adapter file must say whether it was trained: training={'trained': True or False, …}")
    tensors = {key: value.detach().to(device="cpu", dtype=dtype).contiguous() for key, value in state_dict.items()}
    _check_keys(path, {key: tuple(value.shape) for key, value in tensors.items()}, config)
    _check_finite(path, tensors)
    spec = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/flexip-adapter",
        "modelspec.implementation": "https://arxiv.org/abs/2504.07405",
        "modelspec.title": title,
        "modelspec.date": date.today().isoformat(),
        "modelspec.license": license,
        "modelspec.hash_sha256": "0x" + tensors_hash(tensors),
    }
    metadata = {
        "flexip.format_version": FORMAT_VERSION,
        "flexip.config": config.to_json(),
        "flexip.encoders": json.dumps(encoders or {}, sort_keys=True),
        "flexip.training": json.dumps(dict(training), sort_keys=True),
        **spec,
    }
    write_tensors(path, tensors, metadata)


def read_info(path: str | Path) -> AdapterInfo:
    """Read and check the header alone: version, config, keys, shapes and dtypes; milliseconds at any size.

    Raises:
        FlexIPError: see `safefile.read_header`; another kind of file (named), an unknown format version, a config
            that is damaged, missing or extra keys, wrong shapes, integer tensors.
    """
    path = Path(path)
    return _info(path, read_header(path))


def load_adapter_file(path: str | Path) -> tuple[AdapterInfo, dict[str, Tensor]]:
    """Read an adapter file strictly, on the CPU, in the dtype that it was saved in.

    Raises:
        FlexIPError: as `read_info`, and NaN or infinite weights.
    """
    info = read_info(path)
    tensors = load_tensors(path)
    _check_finite(Path(path), tensors)
    return info, tensors


def build_adapter(info: AdapterInfo, tensors: Mapping[str, Tensor], ops: Any = torch.nn) -> Adapter:
    """An adapter module that holds these tensors themselves (no copy), in eval mode and without gradients."""
    with torch.device("meta"):
        adapter = create_adapter(info.config, ops)
    adapter.restore_buffers()
    adapter.load_state_dict(dict(tensors), strict=True, assign=True)
    return adapter.eval().requires_grad_(False)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over keys, dtypes, shapes and bytes in key order; independent of file layout and metadata."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _info(path: Path, header: Header) -> AdapterInfo:
    version = header.metadata.get("flexip.format_version")
    if version is None:
        hint = advice(header)
        raise FlexIPError(f"{path} is not a FlexIP adapter: it is {identify(header)}{f'; {hint}' if hint else ''}")
    if version != FORMAT_VERSION:
        raise FlexIPError(
            f"{path} has FlexIP format version {version}, this pack reads version {FORMAT_VERSION}; update the pack"
        )
    try:
        config = FlexIPConfig.from_json(header.metadata["flexip.config"])
        adapter_class(config)
        training = json.loads(header.metadata["flexip.training"])
        encoders = json.loads(header.metadata.get("flexip.encoders", "{}"))
        trained = training["trained"]
        if not isinstance(trained, bool):
            raise ValueError(f"trained is {trained!r}; expected true or false")
        if not all(isinstance(text, str) for entry in encoders.values() for text in entry.values()):
            raise ValueError("names and hashes of the encoders are not text")
    except FlexIPError as error:
        raise FlexIPError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FlexIPError(f"{path} has a damaged FlexIP header ({error}); get the file again") from error
    _check_keys(path, {key: entry.shape for key, entry in header.tensors.items()}, config)
    wrong = sorted(key for key, entry in header.tensors.items() if entry.dtype not in FLOAT_DTYPES)
    if wrong:
        raise FlexIPError(
            f"{path}: {wrong[0]} is {header.tensors[wrong[0]].dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
        )
    return AdapterInfo(config, trained, training, encoders, header.metadata)


def _check_keys(path: Path, found: Mapping[str, tuple[int, ...]], config: FlexIPConfig) -> None:
    expected = expected_shapes(config)
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing:
        raise FlexIPError(f"{path} lacks {len(missing)} of {len(expected)} tensors, the first is {missing[0]}")
    if extra:
        raise FlexIPError(f"{path} has {len(extra)} tensors too many, the first is {extra[0]}")
    for key, shape in expected.items():
        if found[key] != shape:
            raise FlexIPError(f"{path}: {key} has shape {list(found[key])}, its config asks for {list(shape)}")


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise FlexIPError(f"{path}: {key} holds NaN or infinite values; the training that made it went wrong")
