"""Several processes in one data folder: one at a time changes its tables, and one at a time writes a dataset.

The locks are the system's own, on files in `DATA/.locks`, so that they end with the process that holds them, also when
it is killed. On storage without them filelock takes a file's existence for a lock, which a kill leaves behind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ...common.errors import FlexIPError

log = logging.getLogger(__name__)
LOCKS = ".locks"
STARTING = 10.0
"""Seconds that a share waits for others of its dataset, which look at the same moment whether it is free."""


@contextmanager
def tables_lock(folder: Path) -> Iterator[None]:
    """Within it no other process changes `flexip-data.json` or an index of this folder; waits for its turn, and may be
    nested.

    Raises:
        FlexIPError: the folder cannot be written to.
    """
    lock = _lock(folder, "tables")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info(f"waiting for another process that changes the tables of {folder}")
            lock.acquire()
    except OSError as error:
        raise FlexIPError(f"{folder} cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()


def dataset_lock(folder: Path, dataset: str, wait: float = 0.0) -> BaseFileLock:
    """Take the right to write a dataset, until the lock's `release` or the process's end.

    Args:
        wait: seconds, at most, for another writer to give it up.

    Raises:
        FlexIPError: another writer has it, or the folder cannot be written to.
    """
    lock = _lock(folder, f"dataset-{dataset}", shared=False)
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise FlexIPError(
            f"another process is writing the dataset {dataset!r} of {folder}; wait for it, or choose another --name"
        ) from error
    except OSError as error:
        raise FlexIPError(f"{folder} cannot be written ({error.strerror or error})") from error
    return lock


def _lock(folder: Path, name: str, shared: bool = True) -> BaseFileLock:
    place = folder / LOCKS
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlexIPError(f"{folder} cannot be written ({error.strerror or error})") from error
    return FileLock(place.resolve() / f"{name}.lock", thread_local=False, is_singleton=shared)
