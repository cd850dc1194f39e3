"""Single pictures with masks: SA-1B and BrushData. The reference is the target's own masked subject."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ....common.errors import FlexIPError
from ....common.texts import decode_text
from ..pixels import RawFrame, Ref
from .base import (
    LEAST_AREA,
    MOST_AREA,
    Choice,
    Item,
    Layout,
    RawGroup,
    coco_mask,
    mask_of,
    names,
    read_json,
    relative,
    tar_members,
    walk,
)


def _samples(source: Path) -> Iterator[tuple[str, dict[str, Ref]]]:
    """(key, suffix → place) of folders of files and of tars, which both name a sample's parts KEY.SUFFIX."""
    for folder in walk(source):
        parts: dict[str, dict[str, Ref]] = {}
        for name in names(folder, (".jpg", ".json")):
            stem, _, suffix = name.partition(".")
            parts.setdefault(stem, {})[suffix] = Ref(folder / name)
        for stem, found in parts.items():
            yield relative(folder / stem, source), found
        for name in names(folder, (".tar",)):
            inside: dict[str, dict[str, Ref]] = {}
            for ref in tar_members(folder / name):
                stem, _, suffix = Path(ref.name).name.partition(".")
                inside.setdefault(stem, {})[suffix] = ref
            for stem, found in inside.items():
                yield f"{relative(folder / name, source)}/{stem}", found


def _sa1b_items(source: Path) -> Iterator[Item]:
    for key, parts in _samples(source):
        if "jpg" in parts and "json" in parts:
            yield Item(key, key, parts)


def _load_sa1b(item: Item, choice: Choice) -> list[RawGroup]:
    found = read_json(item.data["json"])
    try:
        area = int(found["image"]["width"]) * int(found["image"]["height"])
        subject = best_subject(found["annotations"], area)
        mask = None if subject is None else mask_of(coco_mask(subject["segmentation"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{item.data['json']} is no SA-1B annotation ({error})") from error
    return [RawGroup((RawFrame(item.data["jpg"], mask),))]


def best_subject(annotations: list[dict[str, Any]], area: int) -> dict[str, Any] | None:
    """The largest object of 2 to 60 % of the picture, weighed by how sure SA-1B's model was of its mask."""
    fitting = [entry for entry in annotations if LEAST_AREA * area <= entry["area"] <= MOST_AREA * area]
    return max(fitting, key=lambda entry: entry["area"] * entry.get("predicted_iou", 1.0) ** 4, default=None)


def _brush_items(source: Path) -> Iterator[Item]:
    found = False
    for key, parts in _samples(source):
        if "image" in parts and "segmentation" in parts:
            found = True
            yield Item(key, key, parts)
    if not found and any(names(folder, (".tar.gz", ".tgz", ".zip")) for folder in walk(source)):
        raise FlexIPError(
            f"{source} holds packed archives; BrushData's tars are read as they are, unpack what is around them first"
        )


def _load_brush(item: Item, choice: Choice) -> list[RawGroup]:
    parts = item.data
    caption = decode_text(parts["caption"].read(), str(parts["caption"])) if "caption" in parts else ""
    size = int(parts["height"].read()), int(parts["width"].read())
    try:
        masks = json.loads(parts["segmentation"].read())["mask"]
        arrays = [brush_mask(runs, size) for runs in masks]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{parts['segmentation']} is no BrushData segmentation ({error})") from error
    share = [float(array.mean()) for array in arrays]
    fitting = [i for i in range(len(arrays)) if LEAST_AREA <= share[i] <= MOST_AREA]
    best = max(fitting, key=lambda i: share[i], default=None)
    mask = None if best is None else mask_of(arrays[best])
    return [RawGroup((RawFrame(parts["image"], mask, captions=(caption,)),))]


def brush_mask(runs: list[int], size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 from BrushData's own RLE: start (from 1) and length in turn, down the columns.

    BrushBench, the evaluation set, runs along the rows instead; this is the training set's order.

    Raises:
        ValueError: a run that lies outside the picture.
    """
    starts, lengths = np.asarray(runs[::2], np.int64) - 1, np.asarray(runs[1::2], np.int64)
    count = size[0] * size[1]
    if len(starts) != len(lengths) or (starts < 0).any() or (lengths < 0).any() or (starts + lengths > count).any():
        raise ValueError("a mask's runs lie outside the picture")
    steps = np.zeros(count + 1, np.int32)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    return (np.cumsum(steps)[:count] > 0).astype(np.uint8).reshape(size, order="F")


LAYOUTS = (
    Layout(
        name="sa-1b",
        kind="image",
        quality="high",
        license="SA-1B Dataset Research License (research only)",
        expects="sa_NNNNNN.tar files as they are downloaded, or folders with sa_N.jpg and sa_N.json",
        items=_sa1b_items,
        load=_load_sa1b,
    ),
    Layout(
        name="brushdata",
        kind="image",
        quality="base",
        license="Apache-2.0 (BrushData); the pictures are LAION's, with their own rights",
        expects="WebDataset tars with KEY.image, KEY.caption, KEY.height, KEY.width and KEY.segmentation",
        items=_brush_items,
        load=_load_brush,
    ),
)
