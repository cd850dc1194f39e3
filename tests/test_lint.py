"""The rules that tools check: style, import directions, types."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .comfy_server import ROOT

TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("lint-imports",), ("mypy",)],
    ids=lambda command: command[0],
)
def test_tool_has_no_complaint(command: tuple[str, ...]) -> None:
    done = subprocess.run([str(TOOLS / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_types_of_the_nodes(tmp_path: Path) -> None:
    """The nodes import `..flexip_model`, so they are checked as ComfyUI loads them: inside a package."""
    (tmp_path / "flexip_pack").symlink_to(ROOT, target_is_directory=True)
    command = [str(TOOLS / "mypy"), "--config-file", str(ROOT / "pyproject.toml"), "-p", "flexip_pack.nodes"]
    environment = {**os.environ, "MYPYPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
