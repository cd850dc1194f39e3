"""Tensors of a file under the names that this pack uses: where each comes from, checked by the header, then read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..common.errors import FlexIPError
from .safefile import Header

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class Part:
    """How one tensor is made from a file.

    Attributes:
        keys: in the file; several are joined along the first dimension.
        transpose: swap the two dimensions.
        share: (i, n) takes the i-th of n equal pieces of the first dimension: q, k or v out of a joined matrix.
    """

    keys: tuple[str, ...]
    transpose: bool = False
    share: tuple[int, int] | None = None

    def shape(self, header: Header) -> tuple[int, ...]:
        """The shape that `build` gives, from the header alone."""
        shapes = [header.tensors[key].shape for key in self.keys]
        if any(not shape for shape in shapes):
            return ()
        first = sum(shape[0] for shape in shapes) // (1 if self.share is None else self.share[1])
        whole = (first, *shapes[0][1:])
        return whole[::-1] if self.transpose else whole

    def build(self, get: Callable[[str], Tensor]) -> Tensor:
        """The tensor; `get` reads one key of the file."""
        tensors = [get(key) for key in self.keys]
        value = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if self.share is not None:
            value = value.chunk(self.share[1])[self.share[0]]
        return value.t().contiguous() if self.transpose else value


Parts: TypeAlias = dict[str, Part]


def check_parts(path: Path, header: Header, parts: Parts, module: nn.Module) -> torch.dtype:
    """Compare the file with the module, made on `meta`, before a tensor is read.

    Returns:
        The dtype that most of the tensors have; the module gets this one.

    Raises:
        FlexIPError: missing, extra, wrongly shaped or quantized tensors; the first is named.
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
                    f"{path}: {key} is {dtype}; expected one of {', '.join(DTYPES)}: get the file unquantized"
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
