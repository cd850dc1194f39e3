"""Items of a source become frames: decoded, checked and encoded, in this process or in several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from ...common.errors import FlexIPError
from ...common.prefetch import prefetch, worker_pool
from ..format.schema import NewFrame
from .layouts import Choice, Item, find_layout
from .pixels import UNREADABLE, make_frame


@dataclass
class LoadedItem:
    """What became of one item.

    Attributes:
        groups: (suffix, frames, each with its source's SHA-256 or None).
        pictures: pictures and videos that were opened.
        broken: a sentence for each that could not be read.
        unmasked: a sentence for each whose mask was left out.
        small: pictures under the least side.
    """

    groups: list[tuple[str, list[tuple[NewFrame, str | None]]]] = field(default_factory=list)
    pictures: int = 0
    broken: list[str] = field(default_factory=list)
    unmasked: list[str] = field(default_factory=list)
    small: int = 0


def load_all(
    layout: str, items: Iterator[Item], *, choice: Choice, short_side: int, min_side: int, processes: int
) -> Iterator[tuple[Item, LoadedItem]]:
    """Each item with what became of it, in order; loaded by other processes when there is more than one.

    Raises:
        FlexIPError: one of the processes was ended from outside.
    """
    load_one = partial(load, layout, choice=choice, short_side=short_side, min_side=min_side)
    if processes == 1:
        for item in items:
            yield item, load_one(item)
        return
    from concurrent.futures.process import BrokenProcessPool

    with worker_pool(processes) as pool:
        try:
            yield from prefetch(pool, load_one, items, processes * 4)
        except BrokenProcessPool as error:
            raise FlexIPError(
                "a process that reads pictures was ended from outside, most often for want of memory; "
                "run the same command with fewer --processes, it goes on"
            ) from error


def load(layout: str, item: Item, *, choice: Choice, short_side: int, min_side: int) -> LoadedItem:
    """Decode one item; what cannot be read is named in the result and never raised."""
    result = LoadedItem()
    try:
        groups = find_layout(layout).load(item, choice)
    except FlexIPError:
        raise
    except UNREADABLE as error:
        return LoadedItem(pictures=1, broken=[f"{item.key}: {error}"])
    if not groups:
        result.pictures = 1
    for group in groups:
        frames = []
        for raw in group.frames:
            result.pictures += 1
            try:
                frame, source, remark = make_frame(raw, short_side)
            except UNREADABLE as error:
                result.broken.append(f"{raw}: {error}")
                continue
            if min(frame.width, frame.height) < min_side:
                result.small += 1
                continue
            frames.append((frame, source))
            if remark:
                result.unmasked.append(f"{raw}: {remark}")
        result.groups.append((group.suffix, frames))
    return result
