"""What `run.py` starts once everything is installed: `python -m flexip_model.tools OPTIONS`, options as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ..comfyui.process import PACK, ComfyServer, has_gpu
from ..common.errors import FlexIPError
from ..common.signals import sigterm_interrupts
from .sweep_demo import run_demo


@sigterm_interrupts()
def main(options: dict[str, Any], comfyui: Path) -> int:
    """Run one of run.py's commands; the exit code, 2 for what the user can put right."""
    try:
        match options.pop("command"):
            case "demo":
                paths = {key: Path(options.pop(key)) for key in ("out", "reference") if options[key]}
                options.pop("reference", None)
                for path in run_demo(comfyui, paths["out"], reference=paths.get("reference"), **options):
                    print(path)
            case "comfyui":
                run_editor(comfyui, **options)
            case "fullsize":
                from .fullsize import run_fullsize

                run_fullsize(comfyui)
    except FlexIPError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    return 0


def run_editor(comfyui: Path, port: int, cpu: bool) -> None:
    """Serve the editor until Ctrl-C; what is made and saved there stays in out/comfyui."""
    models = {folder.name: folder for folder in (comfyui / "models").iterdir() if folder.is_dir()}
    base = PACK / "out" / "comfyui"
    print("Starting ComfyUI ...", flush=True)
    with ComfyServer(comfyui, base, port=port, cpu=cpu or not has_gpu(), models=models) as server:
        print(f"Open {server.url} in a browser, then Workflow > Browse Templates > ComfyUI-FlexIP.")
        print(f"Pictures and saved workflows: {base}. Ctrl-C stops.", flush=True)
        code = server.wait()
        raise FlexIPError(f"ComfyUI ended with exit code {code}; the end of its log:\n{server.log_tail()}")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), Path(os.environ["COMFYUI_PATH"])))
