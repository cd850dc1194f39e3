"""Read a `.safetensors` header before its tensors, with one clear sentence for every way a file can be wrong; and write
files whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..common.errors import FlexIPError

# safetensors itself allows 100 MB; the largest header of a file in this field (an SDXL checkpoint) is under 1 MB.
MAX_HEADER_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """One tensor in a header: its dtype as safetensors writes it (`F16`, `BF16`, `F32`, `I64` …) and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """A file's tensors by key, and its metadata."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: str | Path) -> Header:
    """Read the header alone; no tensor is touched and memory is bounded by `MAX_HEADER_BYTES`.

    Raises:
        FlexIPError: no such file, a pickle, not safetensors, a damaged or cut file.
    """
    path = Path(path)
    if not path.is_file():
        raise FlexIPError(f"there is no file {path}")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        # A safetensors file has `{` at byte 8; only without it do the magics of zip and pickle mean anything, since
        # they may well be the low bytes of a header's length.
        magic = start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80")
        if magic or path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
            raise FlexIPError(
                f"{path} is a pickle file, which can run code when it is opened and is never loaded here; "
                "get the .safetensors form of the same file"
            )
        length = int.from_bytes(start[:8], "little")
        if len(start) < 9 or length < 2 or length > size - 8:
            raise FlexIPError(f"{path} is not a whole safetensors file ({size} bytes); download or export it again")
        if length > MAX_HEADER_BYTES:
            raise FlexIPError(
                f"{path} has a header of {length} bytes, over the limit of {MAX_HEADER_BYTES}; "
                "it is no file of this field"
            )
        try:
            file.seek(8)
            raw = json.loads(file.read(length))
            metadata = {str(k): str(v) for k, v in raw.pop("__metadata__", {}).items()}
            entries = {key: Entry(str(value["dtype"]), tuple(map(int, value["shape"]))) for key, value in raw.items()}
            end = max((int(value["data_offsets"][1]) for value in raw.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise FlexIPError(f"{path} has a damaged safetensors header ({error}); get it again") from error
    if size != 8 + length + end:
        raise FlexIPError(
            f"{path} has {size} bytes where its header tells of {8 + length + end}; it was cut short, get it again"
        )
    return Header(entries, metadata)


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read every tensor, on the CPU, memory-mapped, in its own dtype.

    Raises:
        FlexIPError: as `read_header`, or shapes and offsets that do not fit together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path)
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise FlexIPError(f"{path} is damaged ({error}); get it again") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a `.safetensors` file whole or not at all; the same tensors and metadata always give the same bytes.

    Raises:
        FlexIPError: as `atomic`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:  # its own form of an OSError
            raise OSError(str(error)) from error
        # safetensors writes metadata in an order that differs from run to run; sorted, the header has the same length.
        with temporary.open("rb+") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            line = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            if len(line) > length:
                raise FlexIPError(f"the header of {path} does not fit its place ({len(line)} bytes in {length})")
            file.seek(8)
            file.write(line.ljust(length))


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and goes away when it does not.

    Raises:
        FlexIPError: the disk is full or read-only; what was there before is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not `mkstemp`: its files are for their owner alone, and models and data are shared.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
    except OSError as error:
        raise FlexIPError(f"{path} cannot be written ({error.strerror or error}); nothing was changed") from error
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own in the place, and that for its owner alone
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise FlexIPError(
            f"{path} cannot be written ({error.strerror or error}); free some space and run the same "
            "command again, what was complete before is untouched"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1024 * 1024):
            digest.update(block)
    return digest.hexdigest()
