"""Run ComfyUI's main.py, and end with the process that asked for it: `python launch.py MAIN.PY ARGUMENTS`.

The parent holds the other end of stdin and never writes; when it ends, however it ends (kill -9 too), the system
closes the pipe and this process goes with it. It works the same on Linux, macOS and Windows.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(main)  # noqa: PTH120  # as `python main.py` sets it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_path(main, run_name="__main__")
