"""The rules that tools check: style, import directions, types."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.paths import ROOT

TOOLS = Path(sys.executable).parent
NODES = Path(__file__).with_name("nodes.importlinter.toml")


def tool(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TOOLS / command[0]), *command[1:]],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("codespell",), ("lint-imports",), ("mypy",)],
    ids=" ".join,
)
def test_tool_has_no_complaint(command: tuple[str, ...]) -> None:
    done = tool(*command)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_no_file_holds_what_a_merge_left() -> None:
    done = subprocess.run(["git", "grep", "-nE", "^(<{7} |>{7} )"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, ""), done.stdout + done.stderr


def pack(folder: Path) -> Path:
    """A folder with the pack in it as ComfyUI loads it, `flexip_pack`; the modules are copies."""
    (folder / "flexip_pack").mkdir()
    shutil.copy(ROOT / "__init__.py", folder / "flexip_pack")
    for part in ("nodes", "flexip_model"):
        shutil.copytree(ROOT / part, folder / "flexip_pack" / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_types_of_the_nodes(tmp_path: Path) -> None:
    command = ("mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "flexip_pack.nodes")
    done = tool(*command, cwd=pack(tmp_path), MYPYPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def lint_nodes(folder: Path) -> subprocess.CompletedProcess[str]:
    return tool("lint-imports", "--config", str(NODES), "--no-cache", cwd=folder, PYTHONPATH=str(folder))


def test_import_directions_of_the_nodes(tmp_path: Path) -> None:
    done = lint_nodes(pack(tmp_path))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("method/gate.py", "from ..files import safefile", "Rooms"),
        ("data/format/schema.py", "from ...hosts import denoise", "The data know no host and no ComfyUI"),
        ("data/pack/video.py", "from ...comfyui import client", "The data know no host and no ComfyUI"),
        ("images/crops.py", "from ..method import sites", "Pictures know nothing of the method"),
        ("train/preview.py", "import comfy.sd", "ComfyUI is imported in nodes/ alone"),
        ("encoders/clip.py", "def late():\n    import diffusers", "What the nodes use needs no diffusers"),
        (
            "train/watch.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .trainer import Trainer",
            "Inside train",
        ),
        ("method/loose.py", "", "Inside method"),
    ],
    ids=lambda value: value if value.endswith(".py") else "",
)
def test_a_forbidden_import_is_caught(file: str, line: str, contract: str, tmp_path: Path) -> None:
    root = pack(tmp_path) / "flexip_pack"
    shutil.copy(ROOT / "pyproject.toml", root)
    with (root / "flexip_model" / file).open("a", encoding="utf-8") as module:
        module.write(f"\n{line}\n")
    done = tool("lint-imports", "--no-cache", cwd=root, PYTHONPATH=str(root))
    assert done.returncode != 0
    assert f"{contract} BROKEN" in done.stdout, done.stdout[-4000:]


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("schedule.py", "from .apply import FlexIPApply", "Inside nodes"),
        ("patch/run.py", "from .apply import apply_adapter", "Inside the patch"),
        ("load.py", "from ..flexip_model.train import trainer", "The nodes know no training"),
    ],
    ids=lambda value: value if value.endswith(".py") else "",
)
def test_a_forbidden_import_among_the_nodes_is_caught(file: str, line: str, contract: str, tmp_path: Path) -> None:
    folder = pack(tmp_path)
    with (folder / "flexip_pack" / "nodes" / file).open("a", encoding="utf-8") as module:
        module.write(f"\n{line}\n")
    done = lint_nodes(folder)
    assert done.returncode != 0 and contract in done.stdout and "BROKEN" in done.stdout, done.stdout[-4000:]
