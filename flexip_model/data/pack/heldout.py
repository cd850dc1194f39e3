"""No copy of a held-out picture is trained on: the index's rows are gone through before a dataset is finished."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ..format.dataset import index_names, rebuild
from ..format.locks import tables_lock
from ..format.parts import write_index
from ..format.schema import SCHEMA, shard_path
from ..format.shards import ShardWriter
from ..format.shared_dataset import SharedDataset
from .pixels import UNREADABLE, sameness, thumbnail
from .split import ALIKE, NEAR, NearHashes, enough

ABOVE = {"val": ("heldout",), "train": ("heldout", "val")}
"""The splits whose pictures a split may not have."""


class Protected:
    """The pictures of "heldout" and "val", to find copies of them in what is trained on.

    Args:
        folder: the data folder, whose shards have the pictures: near hashes are confirmed by looking.
        batches: rows of all its datasets.
        distance: see `split.NEAR`.
    """

    def __init__(self, folder: Path, batches: Iterable[pa.RecordBatch], distance: int = NEAR) -> None:
        self._folder = folder
        exact: dict[str, list[str]] = {"heldout": [], "val": []}
        near: dict[str, list[np.ndarray]] = {"heldout": [], "val": []}
        self._places: dict[str, list[tuple[str, int, int]]] = {"heldout": [], "val": []}
        for batch in batches:
            split = np.array(batch.column("split").to_pylist())
            for name in exact:
                rows = batch.filter(pa.array(split == name))
                if rows.num_rows:
                    flat = rows.column("frames").flatten()
                    exact[name] += flat.field("hash").to_pylist()
                    near[name].append(hashes_of(flat))
                    self._places[name] += _places(flat)
        self._exact = {name: pa.array(values, pa.string()) for name, values in exact.items()}
        self._near = {
            name: NearHashes(np.concatenate(values) if values else np.zeros(0, np.uint64), distance)
            for name, values in near.items()
        }

    def copies(self, batch: pa.RecordBatch) -> np.ndarray:
        """(frames of all rows,) bool: which frames are copies of a picture that their split may not have."""
        lists = batch.column("frames")
        flat, split = lists.flatten(), np.array(batch.column("split").to_pylist())
        owner = np.repeat(split, lists.value_lengths().to_numpy())
        found = np.zeros(len(flat), bool)
        for name, above in ABOVE.items():
            rows = np.flatnonzero(owner == name)
            some = flat.take(pa.array(rows))
            places = _places(some)
            for other in above:
                found[rows] |= pc.is_in(some.field("hash"), value_set=self._exact[other]).to_numpy(zero_copy_only=False)
                for query, known in zip(*self._near[other].pairs(hashes_of(some)), strict=True):
                    if not found[rows[query]]:
                        found[rows[query]] = self._alike(places[query], self._places[other][known])
        return found

    def _alike(self, a: tuple[str, int, int], b: tuple[str, int, int]) -> bool:
        try:
            return sameness(self._small(a), self._small(b)) >= ALIKE
        except UNREADABLE:  # what cannot be looked at is not trained on
            return True

    def _small(self, place: tuple[str, int, int]) -> np.ndarray:
        with shard_path(self._folder, place[0]).open("rb") as file:
            file.seek(place[1])
            return thumbnail(Image.open(io.BytesIO(file.read(place[2]))))


def _places(frames: pa.StructArray) -> list[tuple[str, int, int]]:
    return list(zip(*(frames.field(name).to_pylist() for name in ("shard", "offset", "bytes")), strict=True))


def hashes_of(frames: pa.StructArray) -> np.ndarray:
    """(n,) uint64 of the column `dhash`."""
    return np.array([int(text, 16) for text in frames.field("dhash").to_pylist()], np.uint64)


def drop_frames(batch: pa.RecordBatch, drop: np.ndarray) -> pa.RecordBatch:
    """Rows without these frames, and without the groups that are left with too few (or without a role)."""
    lists = batch.column("frames")
    frames = rebuild(lists, lists.flatten(), ~drop)
    columns = list(batch.columns)
    columns[batch.schema.get_field_index("frames")] = frames
    batch = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    roles = [[frame["role"] for frame in row] for row in frames.to_pylist()]
    keep = [enough(kind, row) for kind, row in zip(batch.column("kind").to_pylist(), roles, strict=True)]
    return batch.filter(pa.array(keep, pa.bool_())).cast(SCHEMA)


def keep_apart(writer: ShardWriter | SharedDataset, distance: int = NEAR) -> tuple[int, int]:
    """Finish a dataset so that no copy of a held-out picture is trained on, in it or in the folder's other datasets.

    Returns:
        Frames that were left out of the new dataset's index, and of the indexes of the others.
    """
    writer.flush()
    with tables_lock(writer.folder):
        return _keep_apart(writer, distance)


def _keep_apart(writer: ShardWriter | SharedDataset, distance: int) -> tuple[int, int]:
    folder = writer.folder
    others = [(folder / "index" / f"{name}.parquet") for name in index_names(folder)]

    def rows(path: Path) -> Iterator[pa.RecordBatch]:
        yield from pq.ParquetFile(path).iter_batches()

    protected = Protected(folder, chain(writer.parts(), *map(rows, others)), distance)
    dropped = 0
    for path in others:
        count = sum(int(protected.copies(batch).sum()) for batch in rows(path))
        if count:
            write_index(path, (drop_frames(batch, protected.copies(batch)) for batch in rows(path)))
        dropped += count
    own = 0

    def change(batch: pa.RecordBatch) -> pa.RecordBatch:
        nonlocal own
        drop = protected.copies(batch)
        own += int(drop.sum())
        return drop_frames(batch, drop) if drop.any() else batch.cast(SCHEMA)

    writer.close(change)
    return own, dropped
