"""The figures inside ComfyUI: measured in a process of its own, by the pack as ComfyUI loads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import FlexIPError
from .measure import Row

PACK = Path(__file__).absolute().parents[2]


def find_comfyui() -> Path:
    """The ComfyUI in `COMFYUI_PATH`, else the one that `run.py` unpacked.

    Raises:
        FlexIPError: there is none.
    """
    wanted = os.environ.get("COMFYUI_PATH")
    found = [Path(wanted)] if wanted else sorted((PACK / ".venv" / "comfyui").glob("*"))
    for folder in found:
        if (folder / "comfy").is_dir():
            return folder.absolute()
    raise FlexIPError("no ComfyUI was found; set COMFYUI_PATH to its folder, or run `python run.py test` once")


def comfyui(size: int, rounds: int) -> list[Row]:
    """Rows for sampling, Apply, encoding, import and clones; see the pack's `nodes/benchmark.py`.

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
