"""Which groups are trained on: shares by a hash of the subject's source, and pictures that must stay out."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..errors import FlexIPError
from .dataset import index_names, rebuild
from .pixels import PICTURES, UNREADABLE, dhash, flatten
from .schema import SCHEMA
from .shards import ShardWriter, write_index

NEAR = 3
"""Bits of 64 in which the difference hashes of two versions of a picture may differ. Our choice: recompressed, resized
and recoloured copies lie at 0 to 3, unrelated photographs at about 32; docs/data.md has the measured figures."""


def split_of(key: str, heldout: float, val: float) -> str:
    """The split of everything that came from one source, the same in every run and for every data set.

    Args:
        key: what must not be divided: a person, a video, an object.
        heldout, val: shares, each from 0 to 1.
    """
    place = int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12
    return "heldout" if place < heldout else "val" if place < heldout + val else "train"


class NearHashes:
    """Difference hashes, to ask whether another one lies within a few bits of any of them.

    Two hashes that differ in at most d bits agree in one of d + 1 blocks of bits (the pigeonhole principle), so that
    only hashes with an equal block are compared: millions of questions take seconds.

    Args:
        hashes: (n,) uint64.
        distance: bits, 0 to 7.
    """

    def __init__(self, hashes: np.ndarray, distance: int = NEAR) -> None:
        if not 0 <= distance <= 7:
            raise FlexIPError(f"near pictures differ in 0 to 7 bits of 64, not {distance}")
        self.distance, self.hashes = distance, np.unique(hashes.astype(np.uint64))
        width = 64 // (distance + 1)
        self._shifts = [np.uint64(i * width) for i in range(distance + 1)]
        self._mask = np.uint64(2**width - 1)
        self._blocks = []
        for shift in self._shifts:
            values = (self.hashes >> shift) & self._mask
            order = np.argsort(values, kind="stable")
            self._blocks.append((values[order], order))

    def near(self, queries: np.ndarray) -> np.ndarray:
        """(n,) bool for (n,) uint64: whether each is near one of the hashes."""
        queries = queries.astype(np.uint64)
        found = np.zeros(len(queries), bool)
        if not len(self.hashes):
            return found
        for shift, (values, order) in zip(self._shifts, self._blocks, strict=True):
            wanted = (queries >> shift) & self._mask
            left, right = np.searchsorted(values, wanted, "left"), np.searchsorted(values, wanted, "right")
            counts = right - left
            who = np.repeat(np.arange(len(queries)), counts)
            within = np.arange(len(who)) - np.repeat(np.cumsum(counts) - counts, counts)
            other = self.hashes[order[np.repeat(left, counts) + within]]
            found[who[_bits(queries[who] ^ other) <= self.distance]] = True
        return found


def _bits(values: np.ndarray) -> np.ndarray:
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


ABOVE = {"val": ("heldout",), "train": ("heldout", "val")}
"""For each split, those whose pictures it may not have."""


@dataclass
class KeptOut:
    """Pictures that may not get in: SHA-256 of files, and difference hashes with a distance."""

    exact: set[str] = field(default_factory=set)
    near: NearHashes = field(default_factory=lambda: NearHashes(np.zeros(0, np.uint64)))

    def has(self, digests: Iterable[str | None], hashed: str) -> bool:
        return any(digest in self.exact for digest in digests) or bool(
            self.near.near(np.array([int(hashed, 16)], np.uint64))[0])


def read_excluded(places: Iterable[Path], distance: int = NEAR) -> KeptOut:
    """The pictures of `--exclude`.

    Args:
        places: folders of pictures (searched to the bottom), or text files with one hash a line: 64 hexadecimal digits
            are a SHA-256, 16 a difference hash; `#` starts a comment.

    Raises:
        FlexIPError: a place that is not there, a folder without pictures, a picture that cannot be read, or a line
            that is no hash.
    """
    exact: set[str] = set()
    hashes: list[int] = []
    for place in places:
        if place.is_dir():
            found = sorted(path for path in place.rglob("*") if path.suffix.lower() in PICTURES)
            if not found:
                raise FlexIPError(f"--exclude {place}: there are no pictures in this folder")
            for path in found:
                content = path.read_bytes()
                exact.add(hashlib.sha256(content).hexdigest())
                try:
                    hashes.append(dhash(flatten(Image.open(io.BytesIO(content)))[0].convert("L")))
                except UNREADABLE as error:
                    raise FlexIPError(f"--exclude: {path} cannot be read ({error})") from error
        elif place.is_file():
            for number, line in enumerate(place.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                text = line.split("#")[0].strip().lower()
                if re.fullmatch(r"[0-9a-f]{64}", text):
                    exact.add(text)
                elif re.fullmatch(r"[0-9a-f]{16}", text):
                    hashes.append(int(text, 16))
                elif text:
                    raise FlexIPError(f"{place}, line {number}: expected 64 or 16 hexadecimal digits, got "
                                      f"{text[:80]!r}")
        else:
            raise FlexIPError(f"--exclude {place}: there is no such folder or file")
    return KeptOut(exact, NearHashes(np.array(hashes, np.uint64), distance))


class Protected:
    """What later splits may not share: no frame of "val" is one of "heldout", none of "train" is one of either."""

    def __init__(self, batches: Iterable[pa.RecordBatch], distance: int = NEAR) -> None:
        exact: dict[str, list[str]] = {"heldout": [], "val": []}
        near: dict[str, list[np.ndarray]] = {"heldout": [], "val": []}
        for batch in batches:
            split = np.array(batch.column("split").to_pylist())
            for name in exact:
                rows = batch.filter(pa.array(split == name))
                if rows.num_rows:
                    flat = rows.column("frames").flatten()
                    exact[name] += flat.field("hash").to_pylist()
                    near[name].append(hashes_of(flat))
        self._exact = {name: pa.array(values, pa.string()) for name, values in exact.items()}
        self._near = {name: NearHashes(np.concatenate(values) if values else np.zeros(0, np.uint64), distance)
                      for name, values in near.items()}

    def copies(self, batch: pa.RecordBatch) -> np.ndarray:
        """(frames of all rows,) bool: which frames are copies of a picture that their split may not have."""
        lists = batch.column("frames")
        flat, split = lists.flatten(), np.array(batch.column("split").to_pylist())
        owner = np.repeat(split, lists.value_lengths().to_numpy())
        found = np.zeros(len(flat), bool)
        for name, above in ABOVE.items():
            rows = np.flatnonzero(owner == name)
            some = flat.take(pa.array(rows))
            for other in above:
                same = pa.compute.is_in(some.field("hash"), value_set=self._exact[other]).to_numpy(zero_copy_only=False)
                found[rows] |= same | self._near[other].near(hashes_of(some))
        return found


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


def enough(kind: str, roles: list[str]) -> bool:
    """Whether frames with these roles still make a group of this kind."""
    if kind == "image":
        return bool(roles)
    return len(roles) > 1 and any(r != "target" for r in roles) and any(r != "reference" for r in roles)


def keep_apart(writer: ShardWriter, distance: int = NEAR) -> tuple[int, int]:
    """Finish a dataset so that no copy of a held-out picture is trained on, in it or in the folder's other datasets.

    Returns:
        Frames that were left out of the new dataset's index, and of the indexes of the others.
    """
    writer.flush()
    folder = writer.folder
    others = [(folder / "index" / f"{name}.parquet") for name in index_names(folder)]

    def rows(path: Path) -> Iterator[pa.RecordBatch]:
        yield from pq.ParquetFile(path).iter_batches()

    protected = Protected((batch for batches in [writer.parts(), *map(rows, others)] for batch in batches), distance)
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
