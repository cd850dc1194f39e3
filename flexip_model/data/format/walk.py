"""Go through a data folder shard by shard, for work that takes hours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .dataset import rebuild
from .locks import tables_lock
from .parts import write_index
from .schema import SCHEMA, Frame


class ShardRows(NamedTuple):
    """A shard and where its groups stand in its dataset's table: rows from `first` up to `last`, in runs."""

    shard: str
    runs: tuple[tuple[int, int], ...]


def list_shards(table: pa.Table) -> list[ShardRows]:
    """List the shards of a dataset in the order of its table; a group lies in one shard (`format.ShardWriter`)."""
    runs: dict[str, list[tuple[int, int]]] = {}
    start = 0
    for batch in table.select(["frames"]).to_batches():
        frames = batch.column(0)
        if len(frames) == 0:
            continue
        firsts = pa.array(frames.offsets.to_numpy()[:-1] - frames.offsets[0].as_py())
        codes = frames.flatten().field("shard").take(firsts).dictionary_encode()
        names, places = codes.dictionary.to_pylist(), codes.indices.to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
        for first, last in pairwise(edges):
            found = runs.setdefault(names[places[first]], [])
            if found and found[-1][1] == start + first:
                found[-1] = (found[-1][0], start + last)
            else:
                found.append((start + first, start + last))
        start += len(frames)
    return [ShardRows(shard, tuple(found)) for shard, found in runs.items()]


def read_frames(table: pa.Table, rows: ShardRows) -> list[Frame]:
    """The frames of a shard, in the order of the table."""
    return [Frame.from_row(row) for flat in _flat(table, rows) for row in flat.to_pylist()]


def count_frames(table: pa.Table, rows: ShardRows) -> int:
    """How many frames the groups of a shard have."""
    lists = table.column("frames")
    return sum(pc.sum(pc.list_value_length(lists.slice(a, b - a))).as_py() for a, b in rows.runs)


def stamp(table: pa.Table, rows: ShardRows) -> str:
    """Return 16 hexadecimal digits that identify a shard's frames, masks and boxes; a cache with others is stale."""
    digest = hashlib.sha256()
    for flat in _flat(table, rows):
        columns = [flat.field(name).to_pylist() for name in ("frame_id", "hash", "mask_bytes", "box")]
        digest.update(json.dumps(columns).encode())
    return digest.hexdigest()[:16]


def rewrite_frames(folder: Path, dataset: str, column: str, change: Callable[[str, str, list[str]], list[str]]) -> None:
    """Rewrite a column of texts of a dataset's frames, atomically, and row by row: 40 M frames need little memory.

    Args:
        column: `captions` or `caches`.
        change: (frame_id, shard, what is there) → what is to be there.

    Raises:
        FlexIPError: the disk refuses; the index is as it was.
    """
    path = folder / "index" / f"{dataset}.parquet"

    def changed() -> Iterator[pa.RecordBatch]:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1 << 14):
            frames = batch.column("frames").cast(SCHEMA.field("frames").type)
            flat = frames.flatten()
            values = [
                change(frame_id, shard, old or [])
                for frame_id, shard, old in zip(
                    *(flat.field(name).to_pylist() for name in ("frame_id", "shard", column)), strict=True
                )
            ]
            columns = [flat.field(i) for i in range(flat.type.num_fields)]
            columns[flat.type.get_field_index(column)] = pa.array(values, pa.list_(pa.string()))
            arrays = list(batch.columns)
            arrays[batch.schema.get_field_index("frames")] = rebuild(
                frames, pa.StructArray.from_arrays(columns, fields=list(flat.type))
            )
            yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)

    with tables_lock(folder):
        write_index(path, changed())


def _flat(table: pa.Table, rows: ShardRows) -> Iterator[pa.StructArray]:
    for first, last in rows.runs:
        for chunk in table.slice(first, last - first).column("frames").chunks:
            flat = chunk.flatten()
            yield flat.filter(pc.equal(flat.field("shard"), rows.shard))
