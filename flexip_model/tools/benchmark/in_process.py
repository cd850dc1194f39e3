"""What is measured in a process of its own: the pack inside ComfyUI, and whatever may run into a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...comfyui.process import PACK, find_comfyui
from ...common import parent
from ...common.errors import FlexIPError
from .timing import Row

ON_CPU = ("--cpu", "--use-pytorch-cross-attention")
"""ComfyUI's default on the CPU is sub-quadratic attention, which no one would choose there."""


class TookTooLong(FlexIPError):
    """The process was stopped at its time limit."""


def comfyui(size: int, rounds: int) -> list[Row]:
    """Rows for sampling, Apply, encoding, import and clones; see the pack's `nodes/dev/benchmark.py`.

    Raises:
        FlexIPError: no ComfyUI, or the process failed; its output is on stderr.
    """
    given = {"size": size, "rounds": rounds, "import_seconds": None}
    found = measured("nodes.dev.benchmark:results", given, comfyui=find_comfyui(), arguments=ON_CPU)
    return [Row(**values) for values in found]


def measured(
    call: str,
    given: dict[str, Any],
    *,
    comfyui: Path | None = None,
    arguments: tuple[str, ...] = (),
    limit: float | None = None,
    log: IO[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Call a function of the pack in a process of its own, and yield what it yields, as soon as it does.

    The process ends with the iteration, and with this process.

    Args:
        call: MODULE:FUNCTION inside the pack; it yields dictionaries that JSON can hold.
        given: its arguments.
        comfyui: the ComfyUI to import first, with `arguments` of its command line.
        limit: seconds after which the process is stopped.
        log: an open file for what it prints; None is stderr.

    Raises:
        TookTooLong: at the limit.
        FlexIPError: the process failed.
    """
    options = {
        "call": call,
        "given": given,
        "pack": str(PACK),
        "comfyui": None if comfyui is None else str(comfyui),
        "arguments": arguments,
    }
    command = [sys.executable, parent.__file__, str(Path(__file__).with_name("inside.py")), json.dumps(options)]
    end = None if limit is None else time.monotonic() + limit
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # never written: see common/parent.py
        stdout=subprocess.PIPE,
        stderr=log or sys.stderr,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # so that loading processes of it can be stopped together with it
    )
    assert process.stdout is not None
    assert process.stdin is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    try:
        while (line := _next(lines, end)) is not None:
            yield json.loads(line)
        if process.wait():
            raise FlexIPError(f"{call} failed with exit code {process.returncode}; see what it printed")
    except queue.Empty:
        raise TookTooLong(f"stopped at its limit of {limit:.0f} s") from None
    finally:
        _stop(process)
        process.stdin.close()


def _read(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _next(lines: queue.SimpleQueue[str | None], end: float | None) -> str | None:
    return lines.get(timeout=None if end is None else max(0.0, end - time.monotonic()))


def _stop(process: subprocess.Popen[str]) -> None:
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it started and left behind
    process.wait()
