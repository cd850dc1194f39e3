"""`data validate` and `data show`: is a data folder what its index says, and what is in it."""

from __future__ import annotations

import hashlib
import io
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..common.console import Progress
from ..common.errors import FlexIPError
from ..common.texts import LOST
from .format.captions import CaptionCount, count_captions
from .format.dataset import Dataset, index_names
from .format.schema import (
    GROUP_KINDS,
    QUALITIES,
    ROLES,
    SPLITS,
    Frame,
    Group,
    check_schema,
    read_folder_file,
    shard_path,
)
from .format.shards import HEADER
from .pack.pixels import MARKED, UNREADABLE, highest

REPORT_SECONDS = 30.0
SHOWN = 3
"""Captions of a dataset that `show` prints."""


@dataclass
class Validation:
    """What `validate` found: counts, and every error's first few texts."""

    groups: int = 0
    frames: int = 0
    errors: int = 0
    first: list[str] = field(default_factory=list)
    captions: CaptionCount = field(default_factory=CaptionCount)

    def error(self, text: str) -> None:
        self.errors += 1
        if len(self.first) < 10:
            self.first.append(text)


def validate(folder: Path, quick: bool = False) -> Validation:
    """Check a data folder from top to bottom.

    Args:
        quick: only the index and the sizes of the shards, not each frame's bytes.

    Raises:
        FlexIPError: there is no data folder, or an index cannot be read at all.
    """
    declared = read_folder_file(folder)
    names = index_names(folder)
    if not names:
        raise FlexIPError(f"{folder} has no dataset: there is no file in its folder index/")
    found = Validation()
    for name in sorted(set(names) ^ set(declared)):
        found.error(f"{name}: {'has no entry in flexip-data.json' if name in names else 'has no index'}")
    ids: list[np.ndarray] = []
    heldout: set[str] = set()
    total = sum(_open(folder, name).metadata.num_rows for name in names)
    progress = Progress(
        lambda groups: f"{groups:,} of {total:,} groups checked, {found.errors:,} errors",
        unit="groups",
        total=total,
        seconds=REPORT_SECONDS,
    )
    for name in names:
        ids.append(_dataset(folder, name, found, quick=quick, heldout=heldout, progress=progress))
    every = np.concatenate(ids)
    if len(np.unique(every)) != len(every):
        found.error(f"{len(every) - len(np.unique(every)):,} frame ids occur in more than one dataset")
    for name in names:
        for batch in _batches(folder, name):
            rows = batch.filter(pa.compute.equal(batch.column("split"), "train"))
            for frame in rows.column("frames").flatten().to_pylist() if heldout else ():
                if frame["hash"] in heldout:
                    found.error(f"{name}: {frame['frame_id']} is in train and, as the same picture, in heldout")
    return found


def _open(folder: Path, name: str) -> pq.ParquetFile:
    path = folder / "index" / f"{name}.parquet"
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    check_schema(path, file.schema_arrow)
    return file


def _batches(folder: Path, name: str) -> Iterator[pa.RecordBatch]:
    try:
        yield from _open(folder, name).iter_batches(batch_size=4096)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(folder / "index" / f"{name}.parquet", error) from error


def _unreadable(path: Path, error: Exception) -> FlexIPError:
    return FlexIPError(f"{path} cannot be read ({error}); get it again or pack the dataset again")


def _dataset(
    folder: Path, name: str, found: Validation, *, quick: bool, heldout: set[str], progress: Progress
) -> np.ndarray:
    ids, groups = array("Q"), array("Q")
    reader = _Reader(folder, quick)
    for batch in _batches(folder, name):
        found.captions = found.captions.plus(count_captions([batch]))
        for row in batch.to_pylist():
            group = Group.from_row(row)
            where = f"{name}, group {group.group_id!r}"
            found.groups += 1
            groups.append(_number(group.group_id))
            for value, allowed in (
                (group.kind, GROUP_KINDS),
                (group.quality, QUALITIES),
                (group.split, SPLITS),
                (group.dataset, (name,)),
            ):
                if value not in allowed:
                    found.error(f"{where}: {value!r} is none of {', '.join(allowed)}")
            if not group.frames:
                found.error(f"{where}: has no frames")
            for frame in group.frames:
                found.frames += 1
                ids.append(_number(frame.frame_id))
                if group.split == "heldout":
                    heldout.add(frame.hash)
                if any(LOST in caption for caption in frame.captions):
                    found.error(f"{where}: {frame.frame_id}: a caption lost characters; save its file as UTF-8")
                for text in reader.check(frame):
                    found.error(f"{where}: {frame.frame_id}: {text}")
            progress.add(1)
    if twice := len(groups) - len(np.unique(np.array(groups))):
        found.error(f"{name}: {twice:,} group ids occur more than once, so that a group may lie in two splits")
    if twice := len(ids) - len(np.unique(np.array(ids))):
        found.error(f"{name}: {twice:,} frame ids occur more than once")
    return np.unique(np.array(ids))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class _Reader:
    """Checks frames against the shards, which are read in the order of the index."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self._sizes: dict[str, int] = {}

    def check(self, frame: Frame) -> Iterator[str]:
        if frame.role not in ROLES:
            yield f"its role is {frame.role!r}"
        if frame.box is not None and not (
            len(frame.box) == 4
            and 0 <= frame.box[0] < frame.box[2] <= frame.width
            and 0 <= frame.box[1] < frame.box[3] <= frame.height
        ):
            yield f"its box {frame.box} is not inside {frame.width} × {frame.height}"
        try:
            path = shard_path(self.folder, frame.shard)
            if frame.shard not in self._sizes:
                self._sizes[frame.shard] = path.stat().st_size
            parts = [(frame.offset, frame.bytes, "")]
            if frame.mask_offset is not None and frame.mask_bytes is not None:
                parts.append((frame.mask_offset, frame.mask_bytes, ".mask"))
            for offset, count, ending in parts:
                if offset < HEADER or count < 1 or offset + count > self._sizes[frame.shard]:
                    yield f"{frame.shard} is too short or the place in it is wrong"
                elif not self.quick:
                    yield from self._content(path, frame, offset, count, ending=ending)
        except (FlexIPError, OSError) as error:
            yield str(error)

    def _content(self, path: Path, frame: Frame, offset: int, count: int, *, ending: str) -> Iterator[str]:
        with path.open("rb") as file:
            file.seek(offset - HEADER)
            header, content = file.read(HEADER), file.read(count)
        member = header[:100].rstrip(b"\0").decode("utf-8", "replace")
        if member.removesuffix(".jpg").removesuffix(".png") != frame.frame_id + ending:
            yield f"{frame.shard} has {member!r} in its place"
            return
        if not ending and hashlib.sha256(content).hexdigest() != frame.hash:
            yield f"its bytes in {frame.shard} do not have its hash"
            return
        try:
            picture = Image.open(io.BytesIO(content))
            size = picture.size
            if ending and highest(picture.convert("L")) < MARKED:
                yield "its mask marks nothing"
        except UNREADABLE as error:
            yield f"its {'mask' if ending else 'picture'} cannot be read ({error})"
            return
        if size != (frame.width, frame.height):
            yield f"its {'mask' if ending else 'picture'} has {size[0]} × {size[1]} pixels, the index says otherwise"


def show(folder: Path) -> str:
    """A table of what a data folder holds, the licenses, and some captions of each dataset."""
    data = Dataset.open(folder)
    counts: Counter[tuple[str, ...]] = Counter()
    frames: Counter[tuple[str, ...]] = Counter()
    masks: Counter[tuple[str, ...]] = Counter()
    captions: Counter[tuple[str, ...]] = Counter()
    for name, table in data.tables.items():
        for batch in table.to_batches():
            lists = batch.column("frames")
            flat, lengths = lists.flatten(), lists.value_lengths().to_numpy()
            owner = np.repeat(np.arange(len(lists)), lengths)
            masked = np.bincount(owner, flat.field("mask_offset").is_valid(), minlength=len(lists))
            texts = pa.compute.fill_null(pa.compute.list_value_length(flat.field("captions")), 0).to_numpy()
            told = np.bincount(owner, texts > 0, minlength=len(lists))
            keys = zip(*(batch.column(column).to_pylist() for column in ("kind", "quality", "split")), strict=True)
            for key, n, m, t in zip(keys, lengths, masked, told, strict=True):
                row = (name, *key)
                counts[row] += 1
                frames[row] += int(n)
                masks[row] += int(m)
                captions[row] += int(t)
    rows: list[tuple[str, ...]] = [("dataset", "kind", "quality", "split", "groups", "frames", "masks", "captions")]
    rows += [
        (*key, f"{counts[key]:,}", f"{frames[key]:,}", f"{masks[key]:,}", f"{captions[key]:,}")
        for key in sorted(counts)
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in rows
    ]
    lines += [
        "",
        *(f"{name}: {entry.get('license') or 'no license stated'}" for name, entry in sorted(data.datasets.items())),
    ]
    shown = [line for name, table in data.tables.items() for line in _captions(name, table)]
    lines += ["", *shown] if shown else []
    return "\n".join(lines)


def _captions(name: str, table: pa.Table) -> list[str]:
    """The captions of a dataset's first few frames that have any."""
    found: list[str] = []
    for batch in table.to_batches(max_chunksize=256):
        for texts in batch.column("frames").flatten().field("captions").to_pylist():
            if texts and texts[0] not in found:
                found.append(texts[0])
            if len(found) == SHOWN:
                return [f"{name}: “{text}”" for text in found]
    return [f"{name}: “{text}”" for text in found]
