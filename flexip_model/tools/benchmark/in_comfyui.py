"""The figures inside ComfyUI: measured in a process of its own, by the pack as ComfyUI loads it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ...comfyui.process import PACK, find_comfyui
from ...common.errors import FlexIPError
from .timing import Row


def comfyui(size: int, rounds: int) -> list[Row]:
    """Rows for sampling, Apply, encoding, import and clones; see the pack's `nodes/dev/benchmark.py`.

    Raises:
        FlexIPError: no ComfyUI, or the process failed; its output is on stderr.
    """
    found = find_comfyui()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        options = {"size": size, "rounds": rounds, "out": str(out), "comfyui": str(found), "pack": str(PACK)}
        script = Path(__file__).with_name("inside.py")
        done = subprocess.run([sys.executable, str(script), json.dumps(options)], stdout=sys.stderr)
        if done.returncode or not out.is_file():
            raise FlexIPError(f"measuring inside ComfyUI failed with exit code {done.returncode}; see above")
        return [Row(**values) for values in json.loads(out.read_text(encoding="utf-8"))]
