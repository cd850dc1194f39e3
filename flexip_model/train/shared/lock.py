"""One run to a folder: two would remove each other's unfinished checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...common.errors import FlexIPError

PATIENCE = 10.0
"""Seconds to wait for a lock: the loading processes of a run that was killed hold theirs a moment longer."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it, this process alone works in `folder`; the system gives the lock back however the process ends.

    Raises:
        FlexIPError: another process works there, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", is_singleton=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE, poll_interval=0.2)
    except Timeout as error:
        raise FlexIPError(
            f"another run is working in {folder}; wait for its end, stop it, or name another output folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        raise FlexIPError(
            f"{folder} cannot be locked for this run ({error}); let this user write there, or name an output folder on "
            "a file system that has locks"
        ) from error
    try:
        yield
    finally:
        lock.release()
