"""A dataset that several processes, on one machine or many, have written becomes one: its rows lie end to end."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import BaseFileLock

from ...common.errors import FlexIPError
from .locks import dataset_lock, tables_lock
from .parts import DONE, SHARE_SHARDS, read_done, write_index
from .schema import FOLDER_FILE, check_name, read_folder_file, write_folder_file

NAMED = 20
"""Shares or files that a message names."""


class SharedDataset:
    """A dataset that several processes have written, each its share, and that has no index yet.

    Until `close` or `abandon` nobody else may write it or any of its shares.

    Attributes:
        place: where the shares' rows are.
        records: what each share's writer noted at `finish_share`.
        groups, frames: how many lie in all shares.

    Raises:
        FlexIPError: nothing was shared out, a share is being written, or shares, rows or shards are missing or damaged;
            the first of them are named.
    """

    def __init__(self, folder: Path, dataset: str) -> None:
        self.folder, self.dataset = folder, check_name(dataset)
        self.index = folder / "index" / f"{dataset}.parquet"
        self.place = folder / "index" / f"{dataset}.parts"
        if self.index.exists():
            shutil.rmtree(self.place, ignore_errors=True)  # of a merge that was killed after its last step but one
            raise FlexIPError(f"{folder} has a dataset {dataset!r} already; there is nothing to merge")
        names = [re.fullmatch(r"\d+-of-(\d+)", path.name) for path in self.place.glob("*")]
        worlds = {int(name[1]) for name in names if name}
        if len(worlds) != 1:
            raise FlexIPError(f"{self.place} has no shares of one run of `data pack` under several processes")
        (world,) = worlds
        self._shares = [self.place / f"{rank}-of-{world}" for rank in range(world)]
        self.records: list[dict[str, Any]] = []
        self.groups = self.frames = 0
        self._parts: list[Path] = []
        self._locks: list[BaseFileLock] = []
        try:
            for name in (dataset, *(f"{dataset}.{path.name}" for path in self._shares)):
                self._locks.append(dataset_lock(folder, name))
            for leftover in self.index.parent.glob(f".{dataset}.*.tmp"):  # of a merge that was killed
                leftover.unlink()
            self._read_shares()
        except BaseException:
            self.abandon()
            raise
        self.license, self.note = self.records[0]["license"], self.records[0]["note"]

    def _read_shares(self) -> None:
        missing = [path.name for path in self._shares if not (path / DONE).exists()]
        if missing:
            raise FlexIPError(
                f"{self.dataset!r} is not complete, {len(missing):,} of {len(self._shares):,} shares are missing or "
                f"unfinished: {', '.join(missing[:NAMED])}; run the same `data pack` again with the RANK that comes "
                "first in each name, or bring what it wrote here (its shards, and its folder in the index)"
            )
        self.records = [read_done(path / DONE) for path in self._shares]
        for rank, (path, record) in enumerate(zip(self._shares, self.records, strict=True)):
            parts = [path / f"{number:06}.parquet" for number in range(len(record["shards"]))]
            names = [f"{self.dataset}-{rank * SHARE_SHARDS + number:06}.tar" for number in range(len(parts))]
            shards = [self.folder / "shards" / name for name in names]
            lost = [str(file) for file in (*shards, *parts) if not file.exists()]
            if lost:
                raise FlexIPError(
                    f"share {path.name} lacks {', '.join(lost[:NAMED])}{', …' if len(lost) > NAMED else ''}; bring "
                    "what is missing from where it was packed"
                )
            for shard, size in zip(shards, record["shards"], strict=True):
                if shard.stat().st_size != size:
                    raise FlexIPError(
                        f"share {path.name}: {shard} has {shard.stat().st_size:,} bytes, and {size:,} were written; "
                        "bring it again from where it was packed"
                    )
            for part in parts:
                self._count(part)
            self._parts += parts

    def _count(self, part: Path) -> None:
        try:
            metadata = pq.read_metadata(part)
        except (OSError, pa.ArrowException) as error:
            raise FlexIPError(
                f"share {part.parent.name}: {part} cannot be read ({error}); bring it again from where it was packed"
            ) from error
        self.groups += metadata.num_rows
        self.frames += int((metadata.metadata or {}).get(b"flexip.frames", 0))

    def flush(self) -> None:
        """Nothing is in hand."""

    def parts(self) -> Iterator[pa.RecordBatch]:
        """As `ShardWriter.parts`, of all shares in order."""
        for part in self._parts:
            yield from pq.ParquetFile(part).iter_batches()

    def close(self, change: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None) -> None:
        """As `ShardWriter.close`."""
        with tables_lock(self.folder):
            datasets = read_folder_file(self.folder) if (self.folder / FOLDER_FILE).exists() else {}
            write_folder_file(self.folder, {**datasets, self.dataset: {"license": self.license, "note": self.note}})
            write_index(self.index, (batch if change is None else change(batch) for batch in self.parts()))
        shutil.rmtree(self.place, ignore_errors=True)
        self.abandon()

    def abandon(self) -> None:
        """Let others write the dataset again; what the shares wrote stays."""
        for lock in self._locks:
            lock.release()
