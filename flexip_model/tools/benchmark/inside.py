"""A process that imports ComfyUI, then the pack as a custom node, and measures; started by `in_comfyui.py`."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(options: dict[str, Any]) -> None:
    """Write the rows as JSON to `options["out"]`."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        # ComfyUI's default on the CPU is sub-quadratic attention, which no one would choose there.
        sys.argv = ["main.py", "--cpu", "--use-pytorch-cross-attention", "--base-directory", str(base)]
        sys.path[0] = options["comfyui"]
        importlib.import_module("comfy.options").enable_args_parsing()
        for name in ("comfy.sd", "nodes", "comfy_api.latest"):
            importlib.import_module(name)
        spec = importlib.util.spec_from_file_location("flexip_pack", Path(options["pack"]) / "__init__.py")
        if spec is None or spec.loader is None:
            raise ImportError(f"{options['pack']} is no package")
        pack = importlib.util.module_from_spec(spec)
        sys.modules["flexip_pack"] = pack
        start = time.perf_counter()
        spec.loader.exec_module(pack)
        seconds = time.perf_counter() - start
        files = base / "encoders"
        files.mkdir()
        weights = importlib.import_module("flexip_pack.flexip_model.tools.random_weights")
        weights.write_encoders(files / "clip.safetensors", files / "dino.safetensors")
        measured = importlib.import_module("flexip_pack.nodes.dev.benchmark")
        rows = measured.results(options["size"], options["rounds"], files, seconds)
    Path(options["out"]).write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
