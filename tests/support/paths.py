"""Where things are, and the Python files that users run, for the tests that read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
SHIPPED = ROOT / "models" / "demo"
PARTS = ("__init__.py", "run.py", "nodes", "flexip_model")


def sources(*parts: str) -> Iterator[Path]:
    """Every Python file of these parts of the tree, of all by default."""
    for part in parts or PARTS:
        yield from [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*.py"))
