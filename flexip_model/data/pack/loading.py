"""Items of a source become frames: decoded, checked and encoded, in this process or in several."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from ...common.errors import FlexIPError
from ..format.schema import NewFrame
from .layouts import Choice, Item, find_layout
from .pixels import UNREADABLE, make_frame


@dataclass
class Result:
    """One item, loaded: its groups as (suffix, frames with their source's hash), and what was not usable."""

    groups: list[tuple[str, list[tuple[NewFrame, str | None]]]] = field(default_factory=list)
    pictures: int = 0
    broken: list[str] = field(default_factory=list)
    small: int = 0


def load_all(
    layout: str, items: Iterator[Item], choice: Choice, short_side: int, min_side: int, processes: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with what became of it, in order; loaded by other processes when there is more than one.

    Raises:
        FlexIPError: one of the processes was ended from outside.
    """
    jobs: Iterator[Any] = ((layout, item, choice, short_side, min_side) for item in items)
    if processes == 1:
        for job in jobs:
            yield job[1], load(*job)
        return
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    with ProcessPoolExecutor(processes, get_context("spawn"), _end_with, (os.getpid(),)) as pool:
        try:
            waiting: deque[tuple[Item, Future[Result]]] = deque()
            for job in chain(jobs, repeat(None, processes * 4)):
                if job is not None:
                    waiting.append((job[1], pool.submit(load, *job)))
                if waiting and (job is None or len(waiting) >= processes * 4):
                    item, future = waiting.popleft()
                    yield item, future.result()
        except BrokenProcessPool as error:
            raise FlexIPError(
                "a process that reads pictures was ended from outside, most often for want of memory; "
                "run the same command with fewer --processes, it goes on"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with(parent: int) -> None:
    """A worker leaves when its parent is gone, also after kill -9, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def load(layout: str, item: Item, choice: Choice, short_side: int, min_side: int) -> Result:
    """Decode one item; what cannot be read is named in the result and never raised."""
    result = Result()
    try:
        groups = find_layout(layout).load(item, choice)
    except FlexIPError:
        raise
    except UNREADABLE as error:
        return Result(pictures=1, broken=[f"{item.key}: {error}"])
    if not groups:
        result.pictures = 1
    for group in groups:
        frames = []
        for raw in group.frames:
            result.pictures += 1
            try:
                frame = make_frame(raw, short_side)
            except UNREADABLE as error:
                result.broken.append(f"{raw}: {error}")
                continue
            if min(frame[0].width, frame[0].height) < min_side:
                result.small += 1
            else:
                frames.append(frame)
        result.groups.append((group.suffix, frames))
    return result
