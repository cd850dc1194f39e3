"""Frames of one subject from a video: inside one shot, far apart in time, neither the same picture nor another thing.

The paper names the data sets alone (Table 3), so these rules are our choice: a shot detector, a least distance in
time, a band of similarity, the sharpest frame near each chosen time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .frame_choice import Scan, Seen, VideoChoice, choose
from .pixels import SMALL_SIDE, laplacian

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg")
GRAY_SIDE = 256
CUT_LEAST = 12.0
"""Mean change of an HSV channel (of 255) that a cut has at least; talking heads and pans stay under 10."""
CUT_RATIO = 3.0
"""How many times the change around it a cut has to be: motion is fast for several frames, a cut for one."""
MARGIN = 2
"""Frames at both ends of a shot that are not used: encoders blur across a cut."""
KEPT_PER_SECOND = 12.0


@dataclass(frozen=True)
class Picked:
    """A chosen frame: decoded RGB, seconds from the start, number in the order of decoding, shot."""

    picture: Image.Image
    time: float
    number: int
    shot: int


def pick_frames(
    path: Path,
    choice: VideoChoice,
    *,
    window: tuple[float, float] | None = None,
    allowed: Callable[[int], bool] | None = None,
) -> list[list[Picked]]:
    """The groups of frames of a video, one list for each shot that has at least two.

    Args:
        window: seconds; only this part of the video, whose length counts as the video's.
        allowed: which frames, by number from 0, may be chosen (such as those that have a mask).

    Raises:
        OSError, ValueError: the file is no video, is damaged, or has no frames.
    """
    scan = scan_video(path, window, allowed)
    chosen = [group for group in choose(scan, choice) if len(group) > 1]
    wanted = sorted(seen.number for group in chosen for seen in group)
    pictures = dict(zip(wanted, _decode(path, _start(window), wanted), strict=True))
    return [[Picked(pictures[seen.number], seen.time, seen.number, seen.shot) for seen in group] for group in chosen]


def scan_video(
    path: Path, window: tuple[float, float] | None = None, allowed: Callable[[int], bool] | None = None
) -> Scan:
    """Decode a video once: its shots, and up to 12 frames a second with sharpness and a 32 × 32 px picture.

    Raises:
        OSError, ValueError: as `pick_frames`.
    """
    scan = Scan()
    before: np.ndarray | None = None
    changes: list[float] = []
    numbers: list[int] = []
    start, last, kept = None, 0.0, -1e9
    for number, time, frame in frames_of(path, _start(window)):
        if window is not None and time < window[0]:
            continue
        if window is not None and time > window[1]:
            break
        small = np.asarray(frame.reformat(SMALL_SIDE, SMALL_SIDE, format="rgb24").to_ndarray())
        hsv = np.asarray(Image.fromarray(small).convert("HSV"), np.int16)
        changes.append(0.0 if before is None else _change(hsv, before))
        numbers.append(number)
        before = hsv
        start = time if start is None else start
        last = time
        if time - kept >= 1 / KEPT_PER_SECOND - 1e-6 and (allowed is None or allowed(number)):
            kept = time
            scan.seen.append(Seen(number, time, 0, _sharpness(frame), small))
    if start is None:
        raise ValueError("it has no frames")
    scan.length = (last - start) * len(numbers) / max(1, len(numbers) - 1)  # the last frame is shown too
    cuts = [0, *(numbers[i] for i in find_cuts(np.array(changes))), numbers[-1] + 1]
    ends = list(pairwise(cuts))
    for seen in scan.seen:
        seen.shot = bisect_right(cuts, seen.number) - 1
    scan.seen = [seen for seen in scan.seen if _inside(seen.number, *ends[seen.shot], only=len(ends) == 1)]
    return scan


def _start(window: tuple[float, float] | None) -> float:
    return 0.0 if window is None else window[0]


def _inside(number: int, first: int, end: int, only: bool) -> bool:
    return only or first + MARGIN <= number < end - MARGIN


def find_cuts(changes: np.ndarray) -> list[int]:
    """Return where new shots begin: at changes that are large and stand out from the two before and the two after.

    PySceneDetect's `AdaptiveDetector` has this rule and would take PyAV's frames. But it brings OpenCV, which is 74 MB
    and clashes with the other builds of OpenCV that node packs install; it finds no cut in the first and last two
    frames, and calls its detectors' interface unstable. So these ten lines stay.

    Args:
        changes: (frames,) mean change of each frame from the one before, of 255; the first counts for nothing.
    """
    cuts = []
    for i in range(1, len(changes)):
        around = np.concatenate([changes[max(1, i - 2) : i], changes[i + 1 : i + 3]])
        level = float(around.mean()) if len(around) else 0.0
        if changes[i] >= CUT_LEAST and changes[i] >= CUT_RATIO * level:
            cuts.append(i)
    return cuts


def _change(hsv: np.ndarray, before: np.ndarray) -> float:
    difference = np.abs(hsv - before)
    difference[..., 0] = np.minimum(difference[..., 0], 256 - difference[..., 0])  # hue is a circle
    return float(difference.mean())


def _sharpness(frame) -> float:
    scale = GRAY_SIDE / max(frame.width, frame.height)
    gray = frame.reformat(max(3, round(frame.width * scale)), max(3, round(frame.height * scale)), format="gray")
    return float(laplacian(gray.to_ndarray().astype(np.float32)).var())


def frames_of(path: Path, start: float = 0.0) -> Iterator[tuple[int, float, Any]]:
    """(number, seconds from the video's start, PyAV frame) in the order of showing.

    Args:
        start: seconds; decoding begins at the key frame before, and numbers count from there.

    Raises:
        OSError, ValueError: no video stream, or damaged data.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            base, rate = float(stream.time_base or 1), float(stream.average_rate or 25)
            first = stream.start_time or 0
            if start > 0:
                container.seek(first + int(start / base), stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                yield number, number / rate if frame.pts is None else (frame.pts - first) * base, frame
    except av.error.FFmpegError as error:
        raise OSError(f"it cannot be decoded ({error.strerror or error})") from error


def _decode(path: Path, start: float, wanted: list[int]) -> Iterator[Image.Image]:
    """The frames with these numbers (ascending), full size and upright."""
    rest = iter(wanted)
    number = next(rest, None)
    if number is None:
        return
    for at, _, frame in frames_of(path, start):
        if at == number:
            picture = frame.to_image()
            turn = round(frame.rotation) % 360
            yield picture.rotate(turn, expand=True) if turn else picture
            number = next(rest, None)
            if number is None:
                return
    raise ValueError("it ends before its last chosen frame")
