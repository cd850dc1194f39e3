"""Finished captions until they are in the index: JSON lines, a file per shard, in `index/NAME.captions/`.

A shard's lines grow in `SHARD.jsonl.part`, which becomes `SHARD.jsonl` when every frame of it was seen. The first line
tells who writes: another captioner does not go on with this one's work. The second tells which frames were to be
captioned: once some of a group's captions are in the index, that can no longer be seen from the others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TextIO

from ...common.errors import FlexIPError

Entry = tuple[str, str | None]
"""A frame's id and its caption; None where the captioner had nothing to say, or the frame could not be read."""


class ShardLog:
    """One shard's captions in the making; to be used by one process.

    Args:
        folder: the data folder.
        dataset, shard: names of the index.
        writer: who captions, such as {"captioner": "qwen2-vl", "model": …}.
    """

    def __init__(self, folder: Path, dataset: str, shard: str, writer: Mapping[str, object]) -> None:
        self.done = log_folder(folder, dataset) / f"{Path(shard).stem}.jsonl"
        self.part = self.done.with_name(self.done.name + ".part")
        self._writer = json.dumps({"writer": dict(writer)}, sort_keys=True)
        self._file: TextIO | None = None
        self._wanted: set[str] = set()

    def is_finished(self) -> bool:
        """Whether this writer has seen every frame of the shard."""
        return self._is_ours(self.done)

    def seen(self) -> set[str]:
        """The frames that this writer has seen before it was interrupted."""
        return {frame_id for frame_id, _ in _read(self.part)} if self._is_ours(self.part) else set()

    def unanswered(self) -> set[str]:
        """The frames that whoever wrote here last was to caption and has not seen."""
        return _asked(self.part) - {frame_id for frame_id, _ in _read(self.part)}

    def plan(self, frame_ids: Collection[str]) -> None:
        """Say which frames are to be captioned; it is written with the first of them."""
        self._wanted = set(frame_ids)

    def add(self, entries: Iterable[Entry]) -> None:
        """Append and sync, so that a kill loses the batch in hand alone.

        Raises:
            FlexIPError: the disk refuses; what was there is kept.
        """
        try:
            if self._file is None:
                self._file = self._open()
            self._file.writelines(json.dumps({"frame_id": name, "caption": text}) + "\n" for name, text in entries)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise FlexIPError(
                f"{self.part} cannot be written ({error.strerror or error}); free some space and run "
                "the same command again: it goes on where it stopped"
            ) from error

    def finish(self) -> None:
        """Note that every frame of the shard was seen."""
        self.add([])
        self.close()
        self.part.replace(self.done)

    def close(self) -> None:
        """Let go of the file; what was added stays for the next time."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> TextIO:
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.done.unlink(missing_ok=True)
        if not self._is_ours(self.part):
            asked = json.dumps({"asked": sorted(self._wanted)})
            self.part.write_text(f"{self._writer}\n{asked}\n", encoding="utf-8")
        file = self.part.open("r+", encoding="utf-8")
        file.seek(0, os.SEEK_END)
        # A line that a kill cut short ends here, and is passed over when read.
        if not self.part.read_bytes().endswith(b"\n"):
            file.write("\n")
        return file

    def _is_ours(self, path: Path) -> bool:
        try:
            with path.open(encoding="utf-8") as file:
                return file.readline().rstrip("\n") == self._writer
        except (OSError, UnicodeDecodeError):
            return False


def log_folder(folder: Path, dataset: str) -> Path:
    """Where the lines of a dataset lie until they are in its index."""
    return folder / "index" / f"{dataset}.captions"


def read_captions_of(folder: Path, dataset: str, shard: str) -> dict[str, str]:
    """The captions of a shard that are not in the index yet, whoever made them."""
    done = log_folder(folder, dataset) / f"{Path(shard).stem}.jsonl"
    path = done if done.exists() else done.with_name(done.name + ".part")
    return {frame_id: text for frame_id, text in _read(path) if text}


def remove_logs(folder: Path, dataset: str) -> None:
    """Delete a dataset's lines, which are in the index now."""
    shutil.rmtree(log_folder(folder, dataset), ignore_errors=True)


def _asked(path: Path) -> set[str]:
    try:
        with path.open(encoding="utf-8") as file:
            file.readline()
            return set(json.loads(file.readline())["asked"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _read(path: Path) -> list[Entry]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines[1:]:
        try:
            entry = json.loads(line)
            found.append((str(entry["frame_id"]), entry["caption"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
