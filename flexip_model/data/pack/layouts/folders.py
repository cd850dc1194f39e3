"""A user's own material: a folder of pictures, of videos, or of folders with views of one thing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..pixels import PICTURES, RawFrame, Ref
from ..video import VIDEOS
from .base import Choice, Item, Layout, RawGroup, evenly, names, read_text, relative, video_groups, walk

MASK = ".mask.png"
OWN = "not stated; say it with --license"


def _pictures(folder: Path) -> list[str]:
    return [name for name in names(folder) if not name.lower().endswith(MASK)]


def _frame(path: Path) -> RawFrame:
    mask = path.with_name(path.stem + MASK)
    return RawFrame(Ref(path), Ref(mask) if mask.is_file() else None, captions=read_text(path.with_suffix(".txt")))


def _picture_items(source: Path) -> Iterator[Item]:
    for folder in walk(source):
        for name in _pictures(folder):
            key = relative(folder / name, source)
            yield Item(key, key, {"path": folder / name})


def _load_picture(item: Item, choice: Choice) -> list[RawGroup]:
    return [RawGroup((_frame(item.data["path"]),))]


def _video_items(source: Path) -> Iterator[Item]:
    for folder in walk(source):
        for name in names(folder, VIDEOS):
            key = relative(folder / name, source)
            yield Item(key, key, {"path": folder / name})


def _load_video(item: Item, choice: Choice) -> list[RawGroup]:
    path = item.data["path"]
    return video_groups(path, choice.video, captions=read_text(path.with_suffix(".txt")))


def _view_items(source: Path) -> Iterator[Item]:
    for folder in walk(source):
        found = _pictures(folder) if folder != source else []
        if len(found) > 1:
            key = relative(folder, source)
            yield Item(key, key, {"folder": folder, "names": found})


def _load_views(item: Item, choice: Choice) -> list[RawGroup]:
    chosen = evenly(item.data["names"], choice.views)
    return [RawGroup(tuple(_frame(item.data["folder"] / name) for name in chosen))]


PICTURE_NAMES = ", ".join(PICTURES)
LAYOUTS = (
    Layout(
        name="pictures",
        kind="image",
        quality="base",
        license=OWN,
        expects=(
            f"pictures ({PICTURE_NAMES}), in folders or not; NAME.txt beside one holds its captions, one a line; "
            "its alpha channel or NAME.mask.png (white is the subject) is its mask"
        ),
        items=_picture_items,
        load=_load_picture,
    ),
    Layout(
        name="videos",
        kind="video",
        quality="base",
        license=OWN,
        expects=f"videos ({', '.join(VIDEOS)}), in folders or not; NAME.txt beside one holds its captions",
        items=_video_items,
        load=_load_video,
    ),
    Layout(
        name="views",
        kind="multiview",
        quality="base",
        license=OWN,
        expects="one folder for each subject with at least two pictures of it; captions and masks as for `pictures`",
        items=_view_items,
        load=_load_views,
    ),
)
