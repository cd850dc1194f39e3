"""A user's own material: a folder of pictures, of videos, or of folders with views of one thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..pixels import PICTURES, RawFrame, Ref
from ..video import VIDEOS
from .base import Choice, Item, Layout, LeftOut, RawGroup, evenly, folders, names, read_text, relative, video_groups

MASK_ENDINGS = (".mask", "_mask", "-mask")
"""What a mask's name has after the name of its picture; the first is what the documentation names."""
MAPS = frozenset(
    [
        "mask",
        "masks",
        "matte",
        "mattes",
        "alpha",
        "alphas",
        "depth",
        "depths",
        "normal",
        "normals",
        "segmentation",
        "segmentations",
        "seg",
        "albedo",
    ]
)
"""Folders whose pictures are of no subject (our choice, by what tools call them)."""
NO_SUBJECT = "folders of masks or maps, by their names (rename one to take it in)"
ALONE = "masks without their picture"
OWN = "not stated; say it with --license"


class _Pictures(NamedTuple):
    """A folder's pictures, the mask of each that has one, and masks that have no picture; names."""

    pictures: list[str]
    masks: dict[str, str]
    alone: list[str]


def _sort(folder: Path) -> _Pictures:
    """`NAME.mask.png`, `NAME_mask.png` and `NAME-mask.png` are masks where a picture NAME lies beside them."""
    every = names(folder)
    by_stem: dict[str, list[str]] = {}
    for name in every:
        by_stem.setdefault(Path(name).stem, []).append(name)
    found = _Pictures([], {}, [])
    for name in every:
        stem = Path(name).stem
        ending = next((e for e in MASK_ENDINGS if stem.lower().endswith(e) and len(stem) > len(e)), None)
        owners = by_stem.get(stem[: -len(ending)], []) if ending else []
        for owner in owners:
            if ending == MASK_ENDINGS[0] or owner not in found.masks:
                found.masks[owner] = name
        if ending == MASK_ENDINGS[0] and not owners:
            found.alone.append(name)
        elif not owners:
            found.pictures.append(name)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """As `base.walk`, without folders of masks and maps."""
    yield folder
    for inner in folders(folder):
        if not inner.is_symlink() and inner.name.lower() not in MAPS:
            yield from _walk(inner)


def _frame(path: Path, mask: str | None) -> RawFrame:
    shape = None if mask is None else Ref(path.with_name(mask))
    return RawFrame(Ref(path), shape, captions=read_text(path.with_suffix(".txt")))


def _picture_items(source: Path) -> Iterator[Item]:
    for folder in _walk(source):
        found = _sort(folder)
        for name in found.pictures:
            key = relative(folder / name, source)
            yield Item(key, key, {"path": folder / name, "mask": found.masks.get(name)})


def _load_picture(item: Item, choice: Choice) -> list[RawGroup]:
    return [RawGroup((_frame(item.data["path"], item.data["mask"]),))]


def _video_items(source: Path) -> Iterator[Item]:
    for folder in _walk(source):
        for name in names(folder, VIDEOS):
            key = relative(folder / name, source)
            yield Item(key, key, {"path": folder / name})


def _load_video(item: Item, choice: Choice) -> list[RawGroup]:
    path = item.data["path"]
    return video_groups(path, choice.video, captions=read_text(path.with_suffix(".txt")))


def _view_items(source: Path) -> Iterator[Item]:
    for folder in _walk(source):
        found = _sort(folder)
        if len(found.pictures) > 1 and folder != source:
            key = relative(folder, source)
            yield Item(key, key, {"folder": folder, "names": found.pictures, "masks": found.masks})


def _load_views(item: Item, choice: Choice) -> list[RawGroup]:
    chosen = evenly(item.data["names"], choice.views)
    folder, masks = item.data["folder"], item.data["masks"]
    return [RawGroup(tuple(_frame(folder / name, masks.get(name)) for name in chosen))]


def _left_out(source: Path, takes: tuple[str, ...]) -> LeftOut:
    """What none of the three layouts takes: folders of maps, and files of other kinds by their suffix."""
    found: LeftOut = {}
    kinds: Counter[str] = Counter()
    for folder in _walk(source):
        maps = [relative(f, source) for f in folders(folder) if f.name.lower() in MAPS]
        found.setdefault(NO_SUBJECT, []).extend(maps)
        kinds.update(
            Path(name).suffix.lower() or "no suffix"
            for name in names(folder, ("",))
            if not name.lower().endswith((*takes, ".txt"))
        )
    found["files of other kinds"] = [f"{kind} ({count:,})" for kind, count in sorted(kinds.items())]
    return found


def _pictures_left_out(source: Path) -> LeftOut:
    found = _left_out(source, PICTURES)
    found[ALONE] = [relative(f / name, source) for f in _walk(source) for name in _sort(f).alone]
    return found


def _videos_left_out(source: Path) -> LeftOut:
    return _left_out(source, VIDEOS)


def _views_left_out(source: Path) -> LeftOut:
    found = _pictures_left_out(source)
    one = [folder for folder in _walk(source) if folder != source and len(_sort(folder).pictures) == 1]
    found["folders with one picture (a group of views has two or more)"] = [relative(f, source) for f in one]
    found["pictures in SOURCE itself, in no subject's folder"] = _sort(source).pictures
    return found


PICTURE_NAMES = ", ".join(PICTURES)
LAYOUTS = (
    Layout(
        name="pictures",
        kind="image",
        quality="base",
        license=OWN,
        expects=(
            f"pictures ({PICTURE_NAMES}), in folders or not; NAME.txt beside one holds its captions, one a line; "
            "its alpha channel or NAME.mask.png (white is the subject; also NAME_mask.png) is its mask"
        ),
        items=_picture_items,
        load=_load_picture,
        left_out=_pictures_left_out,
    ),
    Layout(
        name="videos",
        kind="video",
        quality="base",
        license=OWN,
        expects=f"videos ({', '.join(VIDEOS)}), in folders or not; NAME.txt beside one holds its captions",
        items=_video_items,
        load=_load_video,
        left_out=_videos_left_out,
    ),
    Layout(
        name="views",
        kind="multiview",
        quality="base",
        license=OWN,
        expects="one folder for each subject with at least two pictures of it; captions and masks as for `pictures`",
        items=_view_items,
        load=_load_views,
        left_out=_views_left_out,
    ),
)
