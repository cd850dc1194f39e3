"""A process of its own that calls one function of the pack and writes what it yields; started by `in_process.py`.

With a ComfyUI it imports that first, then the pack as ComfyUI loads it; else `flexip_model` alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(options: dict[str, Any]) -> None:
    """Write what the function yields, a line of JSON each, to stdout; all else that is printed goes to stderr.

    Args:
        options: `call`, MODULE:FUNCTION inside the pack; `given`, its arguments, where `import_seconds` is filled in;
            `pack`, its folder; `comfyui`, a folder or None, and ComfyUI's `arguments`.
    """
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, function = options["call"].split(":")
    given = options["given"]
    with tempfile.TemporaryDirectory() as base:
        if options["comfyui"] is None:
            sys.path[0] = options["pack"]
        else:
            seconds = open_pack(options["comfyui"], options["pack"], base, options["arguments"])
            module = f"flexip_pack.{module}"
            given = {key: seconds if key == "import_seconds" else value for key, value in given.items()}
        for found in getattr(importlib.import_module(module), function)(**given):
            print(json.dumps(found), file=lines, flush=True)


def open_pack(comfyui: str, pack: str, base: str, arguments: list[str]) -> float:
    """Import ComfyUI and the pack, as `flexip_pack`; the seconds that the pack took."""
    sys.argv = ["main.py", "--base-directory", base, *arguments]
    sys.path[0] = comfyui
    importlib.import_module("comfy.options").enable_args_parsing()
    for name in ("comfy.sd", "nodes", "comfy_api.latest"):
        importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("flexip_pack", Path(pack) / "__init__.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{pack} is no package")
    module = importlib.util.module_from_spec(spec)
    sys.modules["flexip_pack"] = module
    start = time.perf_counter()
    spec.loader.exec_module(module)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
