"""The rules that tools check: style, import directions, types."""

from __future__ import annotations

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
