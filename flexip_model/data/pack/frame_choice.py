"""Which frames of a shot become a group: far apart in time, neither the same picture nor another thing, sharp.

All of it is our choice (see `video`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ...common.errors import FlexIPError
from .pixels import sameness

TRIED = 32
"""Frames of a shot, and pairs of them, that are looked at when evenly spaced ones do not fit."""


@dataclass(frozen=True, kw_only=True)
class VideoChoice:
    """How frames are chosen.

    Attributes:
        frames: at most this many a shot.
        gap: least distance in time, as a share of the length.
        gap_of: whose length, the whole "video"'s or the "shot"'s (for long films with short shots).
        low: least similarity of colors (histogram intersection, 0 to 1): under it, another thing came into view.
        high: largest sameness (1 − mean difference of 32 × 32 px pictures, 0 to 1): over it, nothing moved.
    """

    frames: int = 4
    gap: float = 0.1
    gap_of: str = "video"
    low: float = 0.4
    high: float = 0.985

    def __post_init__(self) -> None:
        if not (
            self.frames >= 2
            and 0 < self.gap < 1
            and self.gap_of in ("video", "shot")
            and 0 <= self.low < 1
            and 0 < self.high <= 1
        ):
            raise FlexIPError(
                "frames of a video: at least 2, gap between 0 and 1 of the `video` or the `shot`, and "
                f"a band of similarity inside 0 to 1, not {self}"
            )


@dataclass
class Seen:
    """What one pass over a video keeps of a frame: 3 KB at most."""

    number: int
    time: float
    shot: int
    sharpness: float
    small: np.ndarray


@dataclass
class Scan:
    """One pass: the frames kept, and the length in seconds of the part that was asked for."""

    seen: list[Seen] = field(default_factory=list)
    length: float = 0.0


def choose(scan: Scan, choice: VideoChoice) -> list[list[Seen]]:
    """Choose in each shot the largest set of frames that keeps the distance in time and the band of similarity."""
    groups = []
    for shot in sorted({seen.shot for seen in scan.seen}):
        frames = [seen for seen in scan.seen if seen.shot == shot]
        span = frames[-1].time - frames[0].time
        gap = choice.gap * (scan.length if choice.gap_of == "video" else max(span, 1e-6))
        best: list[Seen] = []
        slots = _slots(frames, span, gap, choice.frames)
        for first in range(len(slots)):
            kept: list[Seen] = []
            for seen in slots[first:] + slots[:first]:
                if all(_fits(seen, other, choice) for other in kept):
                    kept.append(seen)
            best = max(best, kept, key=len)
        if len(best) < 2:
            best = _pair(frames, gap, choice) or best
        groups.append(sorted(best, key=lambda seen: seen.time))
    return groups


def _fits(a: Seen, b: Seen, choice: VideoChoice) -> bool:
    return colors(a.small, b.small) >= choice.low and sameness(a.small, b.small) <= choice.high


def _pair(frames: list[Seen], gap: float, choice: VideoChoice) -> list[Seen]:
    """The two frames that differ most, for motion that comes back to where it began; empty when none fit."""
    some = [frames[i * len(frames) // TRIED] for i in range(TRIED)] if len(frames) > TRIED else frames
    pairs = (
        (sameness(a.small, b.small), i, j)
        for i, a in enumerate(some)
        for j, b in enumerate(some)
        if b.time - a.time >= gap - 1e-6
    )
    for _, i, j in sorted(pairs)[:TRIED]:
        if _fits(some[i], some[j], choice):
            return [some[i], some[j]]
    return []


def _slots(frames: list[Seen], span: float, gap: float, most: int) -> list[Seen]:
    """The sharpest frame near each of up to `most` evenly spaced times, no two nearer than `gap` seconds."""
    if span < gap or span <= 0:
        return frames[:1]
    # A quarter more room than needed, so that there is a choice of sharp frames around each time.
    count = min(most, max(2, 1 + int(span / (1.25 * gap))))
    step = span / (count - 1)
    reach = min((step - gap) / 2, 0.5)
    times = np.array([seen.time for seen in frames])
    chosen: list[Seen] = []
    for i in range(count):
        target = frames[0].time + i * step
        near = [frames[j] for j in np.flatnonzero(np.abs(times - target) <= reach + 1e-6)]
        near = near or [frames[int(np.argmin(np.abs(times - target)))]]
        near = [seen for seen in near if not chosen or seen.time - chosen[-1].time >= gap - 1e-6]
        if near:
            chosen.append(max(near, key=lambda seen: seen.sharpness))
    return chosen


def colors(a: np.ndarray, b: np.ndarray) -> float:
    """How much of the colors two small RGB pictures share: intersection of 8 × 4 × 4 HSV histograms, 0 to 1."""
    return float(np.minimum(_histogram(a), _histogram(b)).sum())


def _histogram(small: np.ndarray) -> np.ndarray:
    hsv = np.asarray(Image.fromarray(small).convert("HSV"), np.int32)
    bins = (hsv[..., 0] // 32) * 16 + (hsv[..., 1] // 64) * 4 + hsv[..., 2] // 64
    return np.bincount(bins.ravel(), minlength=128) / bins.size
