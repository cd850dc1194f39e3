"""What the captions of a data folder are like: how many are missing, and how many groups have one text for all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .walk import ShardRows


class CaptionCount(NamedTuple):
    """Captions of the frames that may be targets; those with the role "reference" need none.

    Attributes:
        frames: how many there are.
        without: how many of them have no caption.
        variants: variant groups with several such frames.
        shared: how many of these have the same captions under all of them, which §4.1 of the paper is against.
    """

    frames: int = 0
    without: int = 0
    variants: int = 0
    shared: int = 0

    def sentences(self) -> list[str]:
        """What a person should know of them before training; nothing where all is well."""
        found = []
        if self.without:
            found.append(
                f"{self.without:,} of {self.frames:,} target frames have no caption ({self.without / self.frames:.1%})"
            )
        if self.shared:
            found.append(
                f"{self.shared:,} of {self.variants:,} variant groups have one caption for all of their frames, where "
                "the paper has one for each (4.1); `python -m flexip_model data caption` writes those"
            )
        return found

    def plus(self, other: CaptionCount) -> CaptionCount:
        return CaptionCount(*(a + b for a, b in zip(self, other, strict=True)))


def count_captions(batches: Iterable[pa.RecordBatch]) -> CaptionCount:
    """Count over rows of an index (`Dataset.batches`); about a million frames a second."""
    found = CaptionCount()
    for batch in batches:
        owner, codes = _texts(batch)
        kinds = batch.column("kind").to_numpy(zero_copy_only=False)
        several = (np.bincount(owner, minlength=len(kinds)) > 1) & (kinds != "image")
        shared = int(shares_captions(batch).sum())
        found = found.plus(CaptionCount(len(owner), int((codes < 0).sum()), int(several.sum()), shared))
    return found


def shares_captions(batch: pa.RecordBatch) -> np.ndarray:
    """(groups,) bool: the variant groups whose target frames, two or more, all have the same captions."""
    owner, codes = _texts(batch)
    kinds = batch.column("kind").to_numpy(zero_copy_only=False)
    found: np.ndarray = np.zeros(len(kinds), bool)
    if len(owner):
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        lowest, highest = np.minimum.reduceat(codes, first), np.maximum.reduceat(codes, first)
        counts = np.diff(np.append(first, len(owner)))
        found[owner[first]] = (lowest == highest) & (lowest >= 0) & (counts > 1)
    found &= kinds != "image"
    return found


def shared_frames(table: pa.Table, rows: ShardRows) -> set[str]:
    """The ids of a shard's frames whose group has the same captions under all of its target frames."""
    found: set[str] = set()
    for first, last in rows.runs:
        for batch in table.slice(first, last - first).to_batches():
            same = batch.filter(pa.array(shares_captions(batch)))
            flat = same.column("frames").flatten()
            flat = flat.filter(pc.and_(pc.equal(flat.field("shard"), rows.shard), _targets(flat)))
            found.update(flat.field("frame_id").to_pylist())
    return found


def _targets(flat: pa.StructArray) -> pa.Array:
    return pc.not_equal(flat.field("role"), "reference")


def _texts(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """For each target frame the place of its group in the batch, and a number that stands for its captions, -1 for
    none; equal captions have equal numbers."""
    lists = batch.column("frames")
    flat = lists.flatten()
    chosen = _targets(flat)
    owner = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy())[chosen.to_numpy(zero_copy_only=False)]
    joined = pc.fill_null(pc.binary_join(flat.filter(chosen).field("captions"), "\n"), "")
    coded = joined.dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64)
    nothing = pc.index(coded.dictionary, "").as_py()
    if nothing >= 0:
        codes[codes == nothing] = -1
    return owner, codes
