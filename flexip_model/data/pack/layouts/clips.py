"""Videos: SA-V, CelebV-HQ, VFHQ and OpenVid-1M."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ....common.errors import FlexIPError
from ....common.texts import encoding_of, not_unicode
from ..pixels import RawFrame, Ref
from ..video import VIDEOS, pick_frames
from .base import (
    LEAST_AREA,
    MOST_AREA,
    Choice,
    Item,
    Layout,
    RawGroup,
    coco_mask,
    evenly,
    mask_of,
    names,
    relative,
    video_groups,
    walk,
)

SAV_STEP = 4
"""SA-V has masks for 6 of its videos' 24 frames a second, each fourth one."""


def _sav_items(source: Path) -> Iterator[Item]:
    for folder in walk(source):
        for name in names(folder, (".mp4",)):
            stem = Path(name).stem
            notes = [folder / f"{stem}{ending}.json" for ending in ("_manual", "_auto")]
            if found := [path for path in notes if path.is_file()]:
                yield Item(relative(folder / stem, source), f"sa-v/{stem}", {"path": folder / name, "notes": found})


def _load_sav(item: Item, choice: Choice) -> list[RawGroup]:
    """Load the object that is seen longest, of those of a subject's size; masks made by hand are preferred."""
    path = item.data["path"]
    for notes in item.data["notes"]:
        masks = best_masklet(json.loads(notes.read_bytes()), notes)
        if masks:
            groups = []
            for shot in pick_frames(path, choice.video, allowed=masks.__contains__):
                frames = tuple(
                    RawFrame(
                        seen.picture,
                        mask_of(coco_mask(masks[seen.number])),
                        time=seen.time,
                        name=f"{path} at {seen.time:.2f} s",
                    )
                    for seen in shot
                )
                groups.append(RawGroup(frames, f"#{shot[0].shot}"))
            return groups
    return []


def best_masklet(notes: dict[str, Any], path: Path) -> dict[int, dict[str, Any]]:
    """Frame number → COCO RLE of one object, for the frames where it covers 2 to 60 % of the picture.

    Raises:
        ValueError: the file is no SA-V annotation.
    """
    from pycocotools import mask as coco

    try:
        best: dict[int, dict[str, Any]] = {}
        for place in range(max((len(frame) for frame in notes["masklet"]), default=0)):
            shown = {}
            for number, frame in enumerate(notes["masklet"]):
                if place < len(frame) and frame[place] and frame[place].get("counts"):
                    rle = frame[place]
                    share = float(coco.area(rle)) / (rle["size"][0] * rle["size"][1])
                    if LEAST_AREA <= share <= MOST_AREA:
                        shown[number * SAV_STEP] = rle
            best = max(best, shown, key=len)
        return best
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no SA-V annotation ({error})") from error


def _celebv_items(source: Path) -> Iterator[Item]:
    table = source / "celebvhq_info.json"
    try:
        clips = json.loads(table.read_bytes())["clips"]
        rows = [
            (
                key,
                clip["ytb_id"],
                (float(clip["duration"]["start_sec"]), float(clip["duration"]["end_sec"])),
                tuple(float(clip["bbox"][side]) for side in ("left", "top", "right", "bottom")),
            )
            for key, clip in sorted(clips.items())
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FlexIPError(f"{table} cannot be read as CelebV-HQ's table of clips ({error!r})") from error
    there = {Path(name).stem: folder / name for folder in walk(source) for name in names(folder, (".mp4",))}
    for key, video, window, box in rows:
        data = (
            {"path": there[key]}
            if key in there
            else {"path": there[video], "window": window, "box": box}
            if video in there
            else None
        )
        if data is not None:
            yield Item(key, f"youtube/{video}", data)


def _load_celebv(item: Item, choice: Choice) -> list[RawGroup]:
    if "window" not in item.data:
        return video_groups(item.data["path"], choice.video)
    left, top, right, bottom = item.data["box"]

    def box(picture: Image.Image) -> tuple[float, float, float, float]:
        return left * picture.width, top * picture.height, right * picture.width, bottom * picture.height

    return video_groups(item.data["path"], choice.video, window=item.data["window"], box=box)


def _vfhq_items(source: Path) -> Iterator[Item]:
    for folder in walk(source):
        for name in names(folder, VIDEOS):
            if (path := folder / name).is_file():
                key = relative(path, source)
                yield Item(key, vfhq_video(key), {"path": path})
        found = names(folder, (".png", ".jpg"))
        if len(found) > 1:
            key = relative(folder, source) if folder != source else source.name
            yield Item(key, vfhq_video(key), {"folder": folder, "names": found})


def vfhq_video(key: str) -> str:
    """The source video in a clip's name, `Clip+VIDEO+P0+C0+F100-200` or `VIDEO#…`: its clips stay in one split."""
    for part in key.split("/"):
        if match := re.match(r"Clip\+(.+?)\+P\d+\+C\d+", part):
            return f"youtube/{match[1]}"
        if "#" in part:
            return f"youtube/{part.split('#')[0]}"
    return f"vfhq/{key}"


def _load_vfhq(item: Item, choice: Choice) -> list[RawGroup]:
    if "path" in item.data:
        return video_groups(item.data["path"], choice.video)
    chosen = evenly(item.data["names"], choice.video.frames)
    return [RawGroup(tuple(RawFrame(Ref(item.data["folder"] / name)) for name in chosen))]


def _openvid_items(source: Path) -> Iterator[Item]:
    tables = [
        folder / name for folder in walk(source) for name in names(folder, (".csv",)) if "openvid" in name.lower()
    ]
    if not tables:
        raise FlexIPError(f"there is no OpenVid-1M.csv under {source}")
    table = max(tables, key=lambda path: path.stat().st_size)
    places = [folder for folder in walk(source) if any(name for name in names(folder, (".mp4",)))]
    with table.open("rb") as file:
        encoding = encoding_of(file.read(4))
    with table.open(encoding=encoding, newline="") as file:
        for row in _rows(csv.DictReader(file), table):
            name = row["video"] or ""
            path = (
                None
                if "/" in name or "\\" in name
                else next((folder / name for folder in places if (folder / name).is_file()), None)
            )
            if path is not None:
                video = re.sub(r"_\d+_\d+to\d+$", "", path.stem)
                yield Item(path.stem, f"youtube/{video}", {"path": path, "caption": row["caption"] or ""})


def _rows(reader: csv.DictReader[str], table: Path) -> Iterator[dict[str, str]]:
    try:
        if not {"video", "caption"} <= set(reader.fieldnames or ()):
            raise FlexIPError(f"{table} has no columns `video` and `caption`")
        yield from reader
    except UnicodeDecodeError as error:
        raise FlexIPError(not_unicode(table, error)) from error
    except csv.Error as error:
        raise FlexIPError(f"{table}, line {reader.line_num}: {error}; get it again") from error


def _load_openvid(item: Item, choice: Choice) -> list[RawGroup]:
    return video_groups(item.data["path"], choice.video, captions=(item.data["caption"],))


LAYOUTS = (
    Layout(
        name="sa-v",
        kind="video",
        quality="high",
        license="CC BY 4.0 (SA-V)",
        expects="sav_NNN folders with sav_NNNNNN.mp4 and its _manual.json or _auto.json (the training part)",
        items=_sav_items,
        load=_load_sav,
    ),
    Layout(
        name="celebv-hq",
        kind="video",
        quality="base",
        license="CelebV-HQ agreement (non-commercial research only)",
        expects=(
            "celebvhq_info.json, and processed/CLIP.mp4 (cropped) or raw/VIDEO.mp4 (whole) from its download script"
        ),
        items=_celebv_items,
        load=_load_celebv,
    ),
    Layout(
        name="vfhq",
        kind="video",
        quality="base",
        license="VFHQ terms of use (non-commercial research only)",
        expects=(
            "clips as folders of frames (Clip+VIDEO+P0+C0+F100-200/NNNNNNNN.png, or VIDEO#….mp4/LENGTH/NNNN.png) "
            "or as videos"
        ),
        items=_vfhq_items,
        load=_load_vfhq,
    ),
    Layout(
        name="openvid-1m",
        kind="video",
        quality="high",
        license="CC BY 4.0 (OpenVid-1M); the videos have their own rights",
        expects="OpenVid-1M.csv (or OpenVidHD.csv) and the mp4 files of the unpacked zips",
        items=_openvid_items,
        load=_load_openvid,
    ),
)
