"""A dataset that several processes, on one machine or many, have written becomes one: its rows lie end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.errors import FlexIPError
from .locks import dataset_lock, tables_lock
from .schema import FOLDER_FILE, check_name, read_folder_file, write_folder_file
from .shards import DONE, SHARE_SHARDS, complete_parts, write_index


class SharedDataset:
    """A dataset that several processes have written, each its share, and that has no index yet.

    Attributes:
        records: what each share's writer noted at `finish_share`.

    Raises:
        FlexIPError: nothing was shared out, or shares, rows or shards are missing; all of them are named.
    """

    def __init__(self, folder: Path, dataset: str) -> None:
        self.folder, self.dataset = folder, check_name(dataset)
        self.index = folder / "index" / f"{dataset}.parquet"
        self._whole = folder / "index" / f"{dataset}.parts"
        if self.index.exists():
            raise FlexIPError(f"{folder} has a dataset {dataset!r} already; there is nothing to merge")
        worlds = {int(path.name.rpartition("-")[2]) for path in self._whole.glob("*-of-*")}
        if len(worlds) != 1:
            raise FlexIPError(f"{self._whole} has no shares of one run of `data pack` under several processes")
        (world,) = worlds
        self._shares = [self._whole / f"{rank}-of-{world}" for rank in range(world)]
        self._lock = dataset_lock(folder, dataset)
        self.records: list[dict[str, Any]] = []
        try:
            missing = [path.name for path in self._shares if not (path / DONE).exists()]
            if missing:
                raise FlexIPError(
                    f"{dataset!r} is not complete, {len(missing):,} of {world:,} shares are missing or unfinished: "
                    f"{', '.join(missing[:20])}; run the same `data pack` again with the RANK that comes first in each "
                    "name, or bring what it wrote here (its shards, and its folder in the index)"
                )
            self.records = [json.loads((path / DONE).read_text(encoding="utf-8")) for path in self._shares]
            self._check_files()
        except BaseException:
            self._lock.release()
            raise
        self.groups = sum(pq.read_metadata(part).num_rows for part in self._parts())
        self.frames = sum(
            int((pq.read_metadata(part).metadata or {}).get(b"flexip.frames", 0)) for part in self._parts()
        )
        self.license, self.note = self.records[0]["license"], self.records[0]["note"]

    def _check_files(self) -> None:
        for rank, (path, record) in enumerate(zip(self._shares, self.records, strict=True)):
            for number in range(record["shards"]):
                shard = self.folder / "shards" / f"{self.dataset}-{rank * SHARE_SHARDS + number:06}.tar"
                for file in (shard, path / f"{number:06}.parquet"):
                    if not file.exists():
                        raise FlexIPError(f"share {path.name} lacks {file}; bring it from where it was packed")

    def _parts(self) -> list[Path]:
        return [part for path in self._shares for part in complete_parts(path)]

    def flush(self) -> None:
        """Nothing is in hand."""

    def parts(self) -> Iterator[pa.RecordBatch]:
        """As `ShardWriter.parts`, of all shares in order."""
        for part in self._parts():
            yield from pq.ParquetFile(part).iter_batches()

    def close(self, change: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None) -> None:
        """As `ShardWriter.close`."""
        with tables_lock(self.folder):
            datasets = read_folder_file(self.folder) if (self.folder / FOLDER_FILE).exists() else {}
            write_folder_file(self.folder, {**datasets, self.dataset: {"license": self.license, "note": self.note}})
            write_index(self.index, (batch if change is None else change(batch) for batch in self.parts()))
        shutil.rmtree(self._whole, ignore_errors=True)
        self._lock.release()
