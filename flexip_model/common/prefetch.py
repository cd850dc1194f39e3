"""Loading ahead: what comes next is loaded in threads or processes while the caller is at what came before."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from .parent import end_with_parent

T = TypeVar("T")
R = TypeVar("R")


def prefetch(pool: Executor, load: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[tuple[T, R]]:
    """Yield (item, `load(item)`) in the order of the items.

    Args:
        pool: where `load` runs.
        depth: at least 1; at most this many items are loaded or loading that were not yielded yet.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(load, item)))
            if len(waiting) == depth:
                first, job = waiting.popleft()
                yield first, job.result()
        while waiting:
            first, job = waiting.popleft()
            yield first, job.result()
    finally:
        for _, job in waiting:
            job.cancel()


def load_batches(load: Callable[[T], R], items: Sequence[T], batch: int, threads: int) -> Iterator[list[R]]:
    """Yield `load` of every item in lists of `batch`, in order; the next list loads while the caller is at this one."""
    with ThreadPoolExecutor(threads) as pool:
        loaded = (value for _, value in prefetch(pool, load, items, batch + 1))
        while values := list(islice(loaded, batch)):
            yield values


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """New processes that take jobs, end with this one, and leave Ctrl-C to it."""
    from multiprocessing import get_context

    return ProcessPoolExecutor(processes, get_context("spawn"), _begin_worker)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
