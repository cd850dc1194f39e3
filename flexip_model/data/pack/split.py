"""Which groups are trained on: shares by a hash of the subject's source, and pictures that must stay out."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ...common.errors import FlexIPError
from ...common.texts import decode_text
from ..format.schema import NewFrame
from .pixels import PICTURES, UNREADABLE, dhash, flatten, sameness, thumbnail

NEAR = 6
"""Bits of 64 in which the difference hashes of two versions of a picture may differ (our choice)."""
ALIKE = 0.97
"""The sameness of two pictures at 32 × 32 px from which near hashes count as a copy (our choice, with `NEAR`). On 700
emoji: 691 copies that were halved and compressed to quality 60 are found, and 329 of 244,650 pairs of two emoji
(flags, clock faces) pass for copies."""


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
        self.distance, self.hashes = distance, hashes.astype(np.uint64)
        width = 64 // (distance + 1)
        self._shifts = [np.uint64(i * width) for i in range(distance + 1)]
        self._mask = np.uint64(2**width - 1)
        self._blocks = []
        for shift in self._shifts:
            values = (self.hashes >> shift) & self._mask
            order = np.argsort(values, kind="stable")
            self._blocks.append((values[order], order))

    def pairs(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of (n,) uint64 queries and which hashes are near each other, as two (m,) arrays of places."""
        queries = queries.astype(np.uint64)
        found = [np.zeros((0, 2), np.int64)]
        for shift, (values, order) in zip(self._shifts, self._blocks, strict=True):
            wanted = (queries >> shift) & self._mask
            left, right = np.searchsorted(values, wanted, "left"), np.searchsorted(values, wanted, "right")
            counts = right - left
            who = np.repeat(np.arange(len(queries)), counts)
            within = np.arange(len(who)) - np.repeat(np.cumsum(counts) - counts, counts)
            other = order[np.repeat(left, counts) + within]
            near = _bits(queries[who] ^ self.hashes[other]) <= self.distance
            found.append(np.stack([who[near], other[near]], axis=1))
        both = np.unique(np.concatenate(found), axis=0)
        return both[:, 0], both[:, 1]


def _bits(values: np.ndarray) -> np.ndarray:
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


@dataclass
class KeptOut:
    """Pictures that may not get in.

    Attributes:
        exact: SHA-256 of files.
        near: difference hashes; for each, `small` has the picture at 32 × 32 px, or None where only the hash is known.
    """

    exact: set[str] = field(default_factory=set)
    near: NearHashes = field(default_factory=lambda: NearHashes(np.zeros(0, np.uint64)))
    small: list[np.ndarray | None] = field(default_factory=list)

    def digest(self) -> str:
        """What tells two lists of them apart, whatever machine reads them: without the near hashes of pictures, which
        another machine's decoder may make a bit different."""
        told = sorted(int(value) for value, small in zip(self.near.hashes, self.small, strict=True) if small is None)
        return hashlib.sha256(json.dumps([sorted(self.exact), told]).encode()).hexdigest()[:16]

    def has(self, frame: NewFrame, source: str | None) -> bool:
        """Whether a frame is one of them or a near copy; `source` is the SHA-256 of the file it came from."""
        if source in self.exact or hashlib.sha256(frame.picture).hexdigest() in self.exact:
            return True
        found = [self.small[i] for i in self.near.pairs(np.array([int(frame.dhash, 16)], np.uint64))[1]]
        if not found:
            return False
        seen = thumbnail(Image.open(io.BytesIO(frame.picture)))
        return any(small is None or sameness(small, seen) >= ALIKE for small in found)


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
    smalls: list[np.ndarray | None] = []
    for place in places:
        if place.is_dir():
            found = sorted(path for path in place.rglob("*") if path.suffix.lower() in PICTURES)
            if not found:
                raise FlexIPError(f"--exclude {place}: there are no pictures in this folder")
            for path in found:
                content = path.read_bytes()
                exact.add(hashlib.sha256(content).hexdigest())
                try:
                    picture = flatten(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))[0]
                except UNREADABLE as error:
                    raise FlexIPError(f"--exclude: {path} cannot be read ({error})") from error
                hashes.append(dhash(picture.convert("L")))
                smalls.append(thumbnail(picture))
        elif place.is_file():
            try:
                lines = decode_text(place.read_bytes(), str(place)).splitlines()
            except (OSError, ValueError) as error:
                raise FlexIPError(f"--exclude: {error}") from error
            for number, line in enumerate(lines, 1):
                text = line.split("#")[0].strip().lower()
                if re.fullmatch(r"[0-9a-f]{64}", text):
                    exact.add(text)
                elif re.fullmatch(r"[0-9a-f]{16}", text):
                    hashes.append(int(text, 16))
                    smalls.append(None)
                elif text:
                    raise FlexIPError(
                        f"{place}, line {number}: expected 64 or 16 hexadecimal digits, got {text[:80]!r}"
                    )
        else:
            raise FlexIPError(f"--exclude {place}: there is no such folder or file")
    return KeptOut(exact, NearHashes(np.array(hashes, np.uint64), distance), smalls)


def enough(kind: str, roles: list[str]) -> bool:
    """Whether frames with these roles still make a group of this kind."""
    if kind == "image":
        return bool(roles)
    return len(roles) > 1 and any(r != "target" for r in roles) and any(r != "reference" for r in roles)
