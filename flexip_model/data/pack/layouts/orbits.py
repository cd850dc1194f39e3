"""Many views of one thing: MVImgNet, MVHumanNet and CO3Dv2."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ....common.errors import FlexIPError
from ..pixels import RawFrame, Ref
from .base import Choice, Item, Layout, RawGroup, evenly, folders, names, relative


def _mvimgnet_items(source: Path) -> Iterator[Item]:
    for category in folders(source):
        for instance in folders(category):
            inside = instance / "images" if (instance / "images").is_dir() else instance
            found = names(inside, (".jpg", ".jpeg"))
            if len(found) > 1:
                key = relative(instance, source)
                yield Item(key, key, {"instance": instance, "images": inside, "names": found})


def _load_mvimgnet(item: Item, choice: Choice) -> list[RawGroup]:
    instance, images = item.data["instance"], item.data["images"]
    masks: dict[str, Path] = {}
    for folder in (instance / "masks", instance / "mask", images):
        if folder.is_dir():
            for name in names(folder, (".png",)):
                # MVImgNet 2 names a mask as its picture, AnyDoor's copy of the first NNN_SOMETHING.png.
                masks.setdefault(name.split(".")[0].split("_")[0], folder / name)
    frames = [
        RawFrame(Ref(images / name), Ref(masks[stem]) if (stem := name.split(".")[0]) in masks else None)
        for name in evenly(item.data["names"], choice.views)
    ]
    return [RawGroup(tuple(frames))]


def _mvhuman_items(source: Path) -> Iterator[Item]:
    for outfit in folders(source):
        images = next((outfit / name for name in ("images", "images_lr") if (outfit / name).is_dir()), None)
        if images is not None and (cameras := folders(images)):
            yield Item(outfit.name, outfit.name, {"outfit": outfit, "images": images, "cameras": cameras})


def _load_mvhuman(item: Item, choice: Choice) -> list[RawGroup]:
    """One frame of each chosen camera, each at another moment, so that view and pose both change."""
    frames = []
    masks = item.data["outfit"] / item.data["images"].name.replace("images", "fmask")
    cameras = evenly(item.data["cameras"], choice.views)
    for i, camera in enumerate(cameras):
        moments = names(camera, (".jpg", ".png"))
        if moments:
            name = moments[i * len(moments) // len(cameras)]
            mask = masks / camera.name / f"{name.rsplit('.', 1)[0]}_fmask.png"
            frames.append(RawFrame(Ref(camera / name), Ref(mask) if mask.is_file() else None))
    return [RawGroup(tuple(frames))]


def _co3d_items(source: Path) -> Iterator[Item]:
    categories = [source] if (source / "frame_annotations.jgz").is_file() else folders(source)
    root = source.parent if categories == [source] else source
    for category in categories:
        annotations = category / "frame_annotations.jgz"
        if not annotations.is_file():
            continue
        rows = sorted(_jgz(annotations), key=lambda row: (row["sequence_name"], row["frame_number"]))
        for sequence, group in groupby(rows, key=lambda row: row["sequence_name"]):
            frames = [
                (row["image"]["path"], (row.get("mask") or {}).get("path"), row.get("frame_timestamp")) for row in group
            ]
            key = f"{category.name}/{sequence}"
            yield Item(key, key, {"root": root, "frames": frames})


def _jgz(path: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = json.load(file)
        if not all(row["image"]["path"] and "sequence_name" in row and "frame_number" in row for row in rows):
            raise ValueError("a frame without a picture")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise FlexIPError(f"{path} is no CO3D annotation ({error}); get it again") from error
    return rows


def _load_co3d(item: Item, choice: Choice) -> list[RawGroup]:
    root: Path = item.data["root"]
    frames = []
    for image, mask, time in evenly(item.data["frames"], choice.views):
        place = None if mask is None else inside(root, mask)
        frames.append(RawFrame(Ref(inside(root, image)), Ref(place) if place and place.is_file() else None, time=time))
    return [RawGroup(tuple(frames))]


def inside(root: Path, name: str) -> Path:
    """A path that an annotation names, which may not lead out of the source.

    Raises:
        ValueError: it does.
    """
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"{name!r} leads out of {root}")
    return path


LAYOUTS = (
    Layout(
        name="mvimgnet",
        kind="multiview",
        quality="base",
        license="MVImgNet terms of use (form; research only)",
        expects=(
            "CLASS/INSTANCE/images/NNN.jpg, with masks in CLASS/INSTANCE/masks (MVImgNet 2) or as NNN_*.png with "
            "an alpha channel beside the pictures"
        ),
        items=_mvimgnet_items,
        load=_load_mvimgnet,
    ),
    Layout(
        name="mvhumannet",
        kind="multiview",
        quality="high",
        license="MVHumanNet terms of use (form; research only)",
        expects="OUTFIT/images/CAMERA/NNNN_img.jpg and OUTFIT/fmask/CAMERA/NNNN_img_fmask.png (or images_lr, fmask_lr)",
        items=_mvhuman_items,
        load=_load_mvhuman,
    ),
    Layout(
        name="co3dv2",
        kind="multiview",
        quality="base",
        license="CC BY-NC 4.0 (CO3Dv2)",
        expects="CATEGORY/frame_annotations.jgz and the CATEGORY/SEQUENCE/images and masks that it names",
        items=_co3d_items,
        load=_load_co3d,
    ),
)
