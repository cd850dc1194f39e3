"""A data folder shard by shard, for work that takes hours; and the column that tells which caches hold a frame."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .cache import cache_file, list_caches
from .format import SCHEMA, Frame, index_names, rebuild, write_index

STAMP = "flexip.frames"


class ShardRows(NamedTuple):
    """A shard and where its groups stand in its dataset's table: rows from `first` up to `last`, in runs."""

    shard: str
    runs: tuple[tuple[int, int], ...]


def list_shards(table: pa.Table) -> list[ShardRows]:
    """The shards of a dataset in the order of its table; a group lies in one shard (`format.ShardWriter`)."""
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


def stamp(table: pa.Table, rows: ShardRows) -> str:
    """An identity of a shard's frames, their masks and boxes: a cache file with another one is stale."""
    digest = hashlib.sha256()
    for flat in _flat(table, rows):
        columns = [flat.field(name).to_pylist() for name in ("frame_id", "hash", "mask_bytes", "box")]
        digest.update(json.dumps(columns).encode())
    return digest.hexdigest()[:16]


def mark_caches(folder: Path) -> dict[str, int]:
    """Write into every index which caches hold each frame, as the files on the disk tell.

    Returns:
        Frames by cache key.

    Raises:
        FlexIPError: the disk refuses; each index is then either as it was or done.
    """
    keys = list(list_caches(folder))
    counts = dict.fromkeys(keys, 0)
    for name in index_names(folder):
        path = folder / "index" / f"{name}.parquet"
        table = pq.read_table(path, schema=SCHEMA, columns=["frames"])
        stamps = {rows.shard: stamp(table, rows) for rows in list_shards(table)}
        del table

        def changed(path: Path = path, stamps: dict[str, str] = stamps) -> Iterator[pa.RecordBatch]:
            @lru_cache(maxsize=64)
            def held(key: str, shard: str) -> frozenset[str]:
                file = cache_file(folder, key, shard)
                return finished_names(file, stamps[shard]) or frozenset()

            for batch in pq.ParquetFile(path).iter_batches(batch_size=1 << 14):
                frames = batch.column("frames").cast(SCHEMA.field("frames").type)
                flat = frames.flatten()
                found = [[key for key in keys if frame in held(key, shard)] for frame, shard in
                         zip(flat.field("frame_id").to_pylist(), flat.field("shard").to_pylist(), strict=True)]
                for key in keys:
                    counts[key] += sum(key in entry for entry in found)
                columns = [flat.field(i) for i in range(flat.type.num_fields)]
                columns[flat.type.get_field_index("caches")] = pa.array(found, pa.list_(pa.string()))
                arrays = list(batch.columns)
                arrays[batch.schema.get_field_index("frames")] = rebuild(
                    frames, pa.StructArray.from_arrays(columns, fields=list(flat.type)))
                yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)

        write_index(path, changed())
    return counts


def finished_names(file: Path, wanted: str) -> frozenset[str] | None:
    """The names in a cache file, or None where it is missing, damaged, or of another stamp."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np") as opened:
            return frozenset(opened.keys()) if (opened.metadata() or {}).get(STAMP) == wanted else None
    except (OSError, SafetensorError):
        return None


def _flat(table: pa.Table, rows: ShardRows) -> Iterator[pa.StructArray]:
    for first, last in rows.runs:
        for chunk in table.slice(first, last - first).column("frames").chunks:
            flat = chunk.flatten()
            yield flat.filter(pc.equal(flat.field("shard"), rows.shard))
