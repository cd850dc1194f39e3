"""End with the process that started this one, however that one ends (`kill -9` too); the same on every system.

For processes that are functions (`processes`): `end_with_parent`. For a Python program that knows nothing of this one
(ComfyUI): this file as a script, `python parent.py MAIN.PY ARGUMENTS`, which needs nothing beside it on the path.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import threading
from collections.abc import Callable


def end_with_parent() -> None:
    """End this process at once when its parent is gone, if `multiprocessing` started it; return at once.

    It ends as `kill -9` would end it, so what is to outlive it must be on the disk before.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        _end_after(parent.join)


def _end_after(wait: Callable[[], object]) -> None:
    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    # The parent holds the other end of stdin and never writes; the system closes it when the parent ends. Read past
    # `sys.stdin`, whose lock Python wants at its own end.
    _end_after(lambda: os.read(0, 1))
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(sys.argv[0])  # noqa: PTH120  # as `python main.py` sets it
    runpy.run_path(sys.argv[0], run_name="__main__")
