"""Write a `.safetensors` file piece by piece, so that a shard's features need not fit into memory and a kill costs
seconds.

safetensors' own writer takes all tensors at once; DINO's patch features of one shard are gigabytes. The format allows a
header that is padded with spaces: room for it is kept at the start, and it is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..common.errors import FlexIPError

_DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8"}


class TensorFile:
    """A file in the making: `PATH.part` holds the tensors, `PATH.part.jsonl` what of it is complete.

    A second writer on the same path goes on after the last `flush`, if its `names` and `metadata` are the same.

    Args:
        path: the file that `close` makes appear.
        names: every name that may be added; only their number and length count.
        metadata: of the header; texts.

    Attributes:
        done: the names that are in it.

    Raises:
        FlexIPError: another process is writing it, or the disk refuses.
    """

    def __init__(self, path: Path, names: Iterable[str], metadata: Mapping[str, str]) -> None:
        self.path, self._metadata = path, dict(metadata)
        self._part, self._journal = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.jsonl")
        self._room = _room(names, self._metadata)
        self._entries: dict[str, dict[str, Any]] = {}
        self._new: list[str] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self._part.open("r+b" if self._part.exists() else "w+b")
        except OSError as error:
            raise _full(path, error) from error
        self._lock()
        try:
            self._end = self._resume()
            self._file.seek(8 + self._room + self._end)
        except OSError as error:
            raise _full(path, error) from error

    @property
    def done(self) -> frozenset[str]:
        return frozenset(self._entries)

    def add(self, name: str, value: Tensor) -> None:
        """Append a tensor (fp16, fp32 or uint8); it counts from the next `flush` on."""
        data = value.detach().cpu().contiguous()
        raw = data.reshape(-1).view(torch.uint8).numpy().data
        try:
            self._file.write(raw)
        except OSError as error:
            raise _full(self.path, error) from error
        self._entries[name] = {
            "dtype": _DTYPES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [self._end, self._end + len(raw)],
        }
        self._end += len(raw)
        self._new.append(name)

    def flush(self) -> None:
        """Make what was added survive a kill: tensors first, then the lines that tell of them."""
        try:
            _sync(self._file)
            with open(self._journal, "a", encoding="utf-8") as journal:
                if journal.tell() == 0:
                    journal.write(json.dumps({"room": self._room, "metadata": self._metadata}) + "\n")
                journal.writelines(json.dumps([name, self._entries[name]]) + "\n" for name in self._new)
                _sync(journal)
        except OSError as error:
            raise _full(self.path, error) from error
        self._new = []

    def close(self) -> None:
        """Write the header, sync, and let the file appear under its name."""
        header = json.dumps({"__metadata__": self._metadata, **self._entries}, separators=(",", ":")).encode()
        try:
            self._file.seek(0)
            self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
            self._file.truncate(8 + self._room + self._end)
            _sync(self._file)
            self._file.close()
            self._part.replace(self.path)
            self._journal.unlink(missing_ok=True)
        except OSError as error:
            raise _full(self.path, error) from error

    def abandon(self) -> None:
        """Let go of it; what was flushed is there for the next writer."""
        with suppress(OSError):  # a full disk complains of what is in the buffer once more
            self._file.close()

    def _resume(self) -> int:
        """Read the journal of an earlier writer; bytes of tensors that are whole."""
        try:
            lines = self._journal.read_text(encoding="utf-8").splitlines()
            start = json.loads(lines[0])
            same = start == {"room": self._room, "metadata": self._metadata}
        except (OSError, ValueError, IndexError):
            same = False
        if not same:
            self._journal.unlink(missing_ok=True)
            self._file.truncate(0)
            return 0
        written = self._part.stat().st_size - 8 - self._room
        end = 0
        for line in lines[1:]:
            try:
                name, entry = json.loads(line)
                first, last = entry["data_offsets"]
            except (ValueError, KeyError, TypeError):
                break
            if first != end or last > written:
                break
            self._entries[name], end = entry, last
        # A line that was cut, and what comes after it, is written again.
        text = [lines[0], *(json.dumps([name, entry]) for name, entry in self._entries.items())]
        self._journal.write_text("\n".join(text) + "\n", encoding="utf-8")
        return end

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows refuses the second writer's rename instead
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise FlexIPError(f"another process is writing {self.path}; wait until it is done, or end it") from error


def _room(names: Iterable[str], metadata: Mapping[str, str]) -> int:
    """An upper bound of the header's bytes, a multiple of 8: every name with the longest numbers there can be."""
    entry = {"dtype": "F16", "shape": [99999] * 4, "data_offsets": [10**15] * 2}
    length = len(json.dumps({"__metadata__": dict(metadata), **dict.fromkeys(names, entry)}))
    return -(-length // 8) * 8


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _full(path: Path, error: OSError) -> FlexIPError:
    return FlexIPError(
        f"{path} cannot be written ({error.strerror or error}); free some space and run the same "
        "command again: it goes on where it stopped"
    )
