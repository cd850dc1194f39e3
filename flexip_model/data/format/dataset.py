"""Read a data folder: rows memory-mapped, pictures with one seek, safe to share with worker processes."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...common.errors import FlexIPError, UnreadableError
from ...files.safefile import atomic
from .remote import Remote, is_remote
from .schema import (
    GROUP_KINDS,
    SCHEMA,
    SPLITS,
    Frame,
    Group,
    check_name,
    check_schema,
    read_folder_file,
    shard_path,
)

if TYPE_CHECKING:
    from PIL.Image import Image

OPEN_SHARDS = 64
ARROW_STAMP = b"flexip.stamp"


class Selection(NamedTuple):
    """Which groups of a data folder are meant; None takes all.

    Attributes:
        split: one of `SPLITS`.
        kinds: some of `GROUP_KINDS`.
        qualities: some of `QUALITIES`.
    """

    split: str | None = None
    kinds: tuple[str, ...] | None = None
    qualities: tuple[str, ...] | None = None


class Dataset:
    """Groups of a data folder, by number.

    The rows stay in Arrow files that are memory-mapped: 12 M groups cost 8 bytes each in a process (the selection),
    and all processes share the pages. The object can be pickled and forked; each process opens its own files.

    Attributes:
        folder: the data folder, or the mirror of a remote one.
        remote: where the shards are, if not in `folder`.
        datasets: name → what `flexip-data.json` says of it.
        tables: name → its rows, all of them.
        names: the datasets in the order of `tables`.
        rows: (groups,) int64: place of each chosen group in the tables laid end to end.
    """

    def __init__(self, folder: Path, selection: Selection, remote: Remote | None = None) -> None:
        self.folder, self.remote, self._selection = folder, remote, selection
        self.datasets = read_folder_file(folder)
        self.tables = {name: _table(folder, name) for name in index_names(folder)}
        self.names = list(self.tables)
        self._starts = np.cumsum([0, *(table.num_rows for table in self.tables.values())]).tolist()
        # A chunk's batches, so that one row is found by bisection and not by a walk over all chunks.
        self._batches = [batch for table in self.tables.values() for batch in table.to_batches()]
        self._batch_starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()
        chosen = [
            _select(table, selection) + start for table, start in zip(self.tables.values(), self._starts, strict=False)
        ]
        self.rows = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
        self._shards = _Shards(remote)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        split: str | None = None,
        kinds: Iterable[str] | None = None,
        qualities: Iterable[str] | None = None,
    ) -> Dataset:
        """Open and check a data folder.

        Args:
            folder: a path, or the URI of a folder in object storage (see `remote`).
            split: "train", "val", "heldout", or None for all.
            kinds: some of "image", "multiview", "video", "pair", or None for all.
            qualities: some of "base", "high", or None for all.

        Raises:
            FlexIPError: no data folder, another version, a damaged index, an unknown split or kind.
        """
        chosen = None if kinds is None else tuple(kinds)
        if split is not None and split not in SPLITS:
            raise FlexIPError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
        unknown = sorted(set(chosen or ()) - set(GROUP_KINDS))
        if unknown:
            raise FlexIPError(f"there is no kind {unknown[0]!r}; choose from {', '.join(GROUP_KINDS)}")
        remote = Remote(str(folder)) if is_remote(folder) else None
        place = Path(folder) if remote is None else remote.synchronize()
        return cls(place, Selection(split, chosen, None if qualities is None else tuple(qualities)), remote)

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> pa.Array:
        """One column of the chosen groups ("kind", "quality", "dataset", "license", "split", "group_id")."""
        whole = pa.chunked_array(
            [column for table in self.tables.values() for column in table.column(name).chunks], SCHEMA.field(name).type
        )
        return whole.take(pa.array(self.rows)).combine_chunks()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows of the chosen groups, in order, some thousands at a time."""
        for start, batch in zip(self._batch_starts, self._batches, strict=False):
            first, last = np.searchsorted(self.rows, (start, start + batch.num_rows))
            if last - first == batch.num_rows:
                yield batch
            elif last > first:
                yield batch.take(pa.array(self.rows[first:last] - start))

    def group(self, number: int) -> Group:
        """The group at this place, 0 ≤ number < len."""
        row = int(self.rows[number])
        batch = bisect_right(self._batch_starts, row) - 1
        return Group.from_row(self._batches[batch].slice(row - self._batch_starts[batch], 1).to_pylist()[0])

    def read(self, frame: Frame) -> bytes:
        """The encoded picture (JPEG or PNG).

        Raises:
            UnreadableError: the shard is missing or shorter than the index says.
        """
        return self._read(frame, frame.offset, frame.bytes)

    def read_mask(self, frame: Frame) -> bytes | None:
        """The encoded mask (gray PNG, white is the subject), or None."""
        if frame.mask_offset is None or frame.mask_bytes is None:
            return None
        return self._read(frame, frame.mask_offset, frame.mask_bytes)

    def picture(self, frame: Frame) -> Image:
        """The picture, decoded, RGB.

        Raises:
            UnreadableError: as `read`, or the bytes are no picture.
        """
        return _decode(self.read(frame), "RGB", f"{frame.shard}: {frame.frame_id}")

    def mask(self, frame: Frame) -> np.ndarray | None:
        """The subject's mask, (height, width) float32 from 0 (background) to 1 (subject); None where none is known.

        Raises:
            UnreadableError: as `read`, or the bytes are no picture.
        """
        content = self.read_mask(frame)
        if content is None:
            return None
        gray = _decode(content, "L", f"{frame.shard}: the mask of {frame.frame_id}")
        return np.asarray(gray, np.float32) / 255

    def _read(self, frame: Frame, offset: int, count: int) -> bytes:
        path = shard_path(self.folder, frame.shard)
        try:
            content = self._shards.read(path, offset, count)
        except (OSError, ValueError) as error:
            raise UnreadableError(f"{path} cannot be read ({error})") from error
        if len(content) != count:
            raise UnreadableError(f"{path} is too short: {frame.frame_id} should end at byte {offset + count}")
        return content

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self._selection, self.remote)


class _Shards:
    """Open shard files of this process, the most recently used few."""

    def __init__(self, remote: Remote | None) -> None:
        self._remote = remote
        self._start()

    def _start(self) -> None:
        self._process, self._lock, self._files = os.getpid(), Lock(), OrderedDict[Path, Any]()

    def _open(self, path: Path) -> Any:
        return path.open("rb") if self._remote is None else self._remote.open(f"shards/{path.name}")

    def read(self, path: Path, offset: int, count: int) -> bytes:
        if self._process != os.getpid():  # a forked worker must not move the parent's file positions
            self._start()
        with self._lock:
            file = self._files.pop(path, None) or self._open(path)
            self._files[path] = file
            if len(self._files) > OPEN_SHARDS:
                self._files.popitem(last=False)[1].close()
            file.seek(offset)
            return bytes(file.read(count))


def _decode(content: bytes, mode: str, what: str) -> Image:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(content)).convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"{what} cannot be decoded ({error})") from error


def index_names(folder: Path) -> list[str]:
    """The datasets that have an index, by name."""
    return sorted(path.stem for path in (folder / "index").glob("*.parquet") if not path.name.startswith("."))


def _table(folder: Path, name: str) -> pa.Table:
    """Rows of one dataset, memory-mapped from an Arrow file that is derived from the Parquet file."""
    path = folder / "index" / f"{check_name(name)}.parquet"
    derived = path.with_suffix(".arrow")
    try:
        status = path.stat()
        parquet = pq.ParquetFile(path)
        check_schema(path, parquet.schema_arrow)
        stamp = f"{status.st_size} {status.st_mtime_ns}".encode()
        if not _is_current(derived, stamp):
            try:
                _derive(parquet, derived, stamp)
            except FlexIPError:  # a folder that cannot be written to is read all the same
                return pq.read_table(path, schema=SCHEMA)
        with pa.memory_map(str(derived)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException) as error:
        raise FlexIPError(f"{path} cannot be read ({error}); get it again or pack the dataset again") from error


def _is_current(derived: Path, stamp: bytes) -> bool:
    try:
        with pa.memory_map(str(derived)) as source:
            return (pa.ipc.open_file(source).schema.metadata or {}).get(ARROW_STAMP) == stamp
    except (OSError, pa.ArrowException):
        return False


def _derive(parquet: pq.ParquetFile, derived: Path, stamp: bytes) -> None:
    schema = SCHEMA.with_metadata({ARROW_STAMP: stamp})
    with atomic(derived) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in parquet.iter_batches(batch_size=1 << 14):
            writer.write_batch(batch.cast(schema))


def _select(table: pa.Table, selection: Selection) -> np.ndarray:
    split, kinds, qualities = selection
    keep = np.ones(table.num_rows, bool)
    for column, values in (("split", None if split is None else [split]), ("kind", kinds), ("quality", qualities)):
        if values is not None:
            found = pc.is_in(table.column(column), value_set=pa.array(values, pa.string()))
            keep &= found.to_numpy()
    return np.flatnonzero(keep)


def rebuild(lists: pa.ListArray, flat: pa.Array, keep: np.ndarray | None = None) -> pa.ListArray:
    """Lists with the lengths of `lists` over `flat` (its flattened values), without those where `keep` is false."""
    offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()
    if keep is not None:
        offsets = np.concatenate([[0], np.cumsum(keep)])[offsets]
        flat = flat.filter(pa.array(keep))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
