"""`evaluate report`: the page and the Markdown, through Jinja2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files.safefile import atomic
from ..scoring.store import Run
from .content import build


def write_report(run: Run, out: Path, study: Mapping[str, Any] | None = None) -> tuple[Path, Path]:
    """Write `report.html`, which needs no other file, and `report.md` (tables alone) into a folder; returns both."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    content = build(run, study)
    html = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    plain = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=False, undefined=StrictUndefined, autoescape=False
    )
    pages = {"report.html": html.get_template("report.html.j2"), "report.md": plain.get_template("report.md.j2")}
    for name, template in pages.items():
        text = template.render(content)
        if name.endswith(".md"):
            text = _without_gaps(text)
        with atomic(out / name) as path:
            path.write_text(text, encoding="utf-8")
    return out / "report.html", out / "report.md"


def _without_gaps(text: str) -> str:
    """Tables without blank lines between their rows, and no more than one blank line elsewhere."""
    text = re.sub(r"(\|) *\n\n+(?=\|)", r"\1\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
