"""What a layout is: a list of items that is cheap to make, and a way to turn one item into groups of frames."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ....common.errors import FlexIPError
from ....common.texts import decode_text
from ..frame_choice import VideoChoice
from ..pixels import PICTURES, RawFrame, Ref
from ..video import pick_frames

LEAST_AREA, MOST_AREA = 0.02, 0.6
"""The share of the picture that one subject of an "everything" segmentation covers (our choice): a smaller one leaves
nothing at CLIP's 224 px, a larger one is the background."""
T = TypeVar("T")
LeftOut = dict[str, list[str]]
"""What a layout takes no notice of: names, by the reason."""


@dataclass(frozen=True)
class Item:
    """One thing of the source.

    Attributes:
        key: its name in the source; becomes the group's id, so it is unique in the source and the same in each run.
        split_key: what must stay in one split (a person, a source video).
        data: what `Layout.load` needs; small, and it can be sent to another process.
        quality: where it is not the layout's.
    """

    key: str
    split_key: str
    data: dict[str, Any] = field(default_factory=dict)
    quality: str = ""


@dataclass(frozen=True)
class RawGroup:
    """Frames of one subject; `suffix` tells the groups of one item apart."""

    frames: tuple[RawFrame, ...]
    suffix: str = ""


@dataclass(frozen=True)
class Choice:
    """What the user may choose for all layouts.

    Attributes:
        views: at most this many frames of a group that is not a video; evenly over the orbit, so that neighbors are
            an eighth of it apart.
        video: see `VideoChoice`.
    """

    views: int = 8
    video: VideoChoice = field(default_factory=VideoChoice)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way a source lies on disk.

    Attributes:
        name: what the command line calls it.
        kind: the kind of its groups, one of `schema.GROUP_KINDS`.
        quality: the column of Table 3 ("High" is "high", the others "base").
        license: what the data set's owners allow, in short; printed, and written into the index.
        expects: what SOURCE holds, for messages and help.
        items: SOURCE → its items, always in the same order.
        load: item → its groups; raises OSError, ValueError or what Pillow raises for a damaged file.
        left_out: SOURCE → what is not taken, for the report; only a user's own material can be told so.
    """

    name: str
    kind: str
    quality: str
    license: str
    expects: str
    items: Callable[[Path], Iterator[Item]]
    load: Callable[[Item, Choice], list[RawGroup]]
    left_out: Callable[[Path], LeftOut] = lambda _: {}


def names(folder: Path, suffixes: Sequence[str] = PICTURES) -> list[str]:
    """The files of a folder with one of these suffixes, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower().endswith(tuple(suffixes)) and entry.is_file()
        )


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return [folder / name for name in sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))]


def walk(folder: Path) -> Iterator[Path]:
    """A folder and all folders under it, in sorted order; links are not followed."""
    yield folder
    for inner in folders(folder):
        if not inner.is_symlink():
            yield from walk(inner)


def relative(path: Path, source: Path) -> str:
    """A name with `/` between its parts on every system."""
    return path.relative_to(source).as_posix()


def tar_members(path: Path) -> Iterator[Ref]:
    """The regular files of an uncompressed tar, in its order; nothing is unpacked and links are passed over.

    Raises:
        FlexIPError: it is no tar.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg():
                    yield Ref(path, member.offset_data, member.size, member.name)
    except (tarfile.TarError, OSError) as error:
        raise FlexIPError(f"{path} cannot be read as a tar ({error}); get it again") from error


def read_json(ref: Ref) -> Any:
    """JSON of a file or member.

    Raises:
        OSError, ValueError: unreadable.
    """
    return json.loads(ref.read())


def read_text(path: Path) -> tuple[str, ...]:
    """The captions of a text file, one a line; nothing when there is no file.

    Raises:
        OSError, ValueError: it cannot be read, or is not UTF-8.
    """
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in decode_text(path.read_bytes(), str(path)).splitlines() if line.strip())


def read_table(path: Path) -> list[str]:
    """The lines of a data set's own list, without those that are blank.

    Raises:
        FlexIPError: it cannot be read, or is not UTF-8.
    """
    try:
        return [line for line in decode_text(path.read_bytes(), str(path)).splitlines() if line.strip()]
    except FlexIPError:
        raise
    except (OSError, ValueError) as error:
        raise FlexIPError(f"{error}; get {path.name} again") from error


def evenly(values: Sequence[T], most: int) -> list[T]:
    """Up to `most` values, evenly over the sequence, the ends of an orbit not both."""
    if len(values) <= most:
        return list(values)
    return [values[i * len(values) // most] for i in range(most)]


def mask_of(array: np.ndarray) -> Image.Image:
    """A mask picture from (H, W) of 0 and not 0."""
    return Image.fromarray((np.asarray(array) != 0).astype(np.uint8) * 255)


def coco_mask(rle: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8 of 0 and 1 from COCO's RLE, compressed (a string) or not (a list of runs).

    Raises:
        ValueError: no RLE, or one that does not fill its size.
    """
    from pycocotools import mask as coco

    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        if not 0 < height * width <= Image.MAX_IMAGE_PIXELS:  # type: ignore[operator]
            raise ValueError(f"a mask of {width} × {height} pixels")
        if isinstance(counts, str):
            counts = counts.encode("ascii")
        if isinstance(counts, bytes):
            packed = {"size": [height, width], "counts": counts}
        else:
            packed = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        return coco.decode(packed)
    except (KeyError, TypeError, UnicodeEncodeError) as error:
        raise ValueError(f"no COCO mask ({error})") from error


def video_groups(
    path: Path,
    choice: VideoChoice,
    *,
    captions: tuple[str, ...] = (),
    window: tuple[float, float] | None = None,
    box: Callable[[Image.Image], tuple[float, float, float, float]] | None = None,
) -> list[RawGroup]:
    """Make a group of each usable shot of a video.

    Args:
        captions: texts that every frame gets.
        window: seconds; only this part of the video.
        box: the subject's x0, y0, x1, y1 in pixels of a frame.
    """
    groups = []
    for shot in pick_frames(path, choice, window=window):
        frames = tuple(
            RawFrame(
                seen.picture,
                time=seen.time,
                captions=captions,
                box=None if box is None else box(seen.picture),
                name=f"{path} at {seen.time:.2f} s",
            )
            for seen in shot
        )
        groups.append(RawGroup(frames, f"#{shot[0].shot}"))
    return groups
