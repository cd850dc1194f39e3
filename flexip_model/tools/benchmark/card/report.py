"""What was measured so far, as `card.json` and `card.md`; both are written anew after every figure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Figure = dict[str, Any]


@dataclass
class Part:
    """One part of the check.

    Attributes:
        name: on the command line.
        title: in the report.
        state: `not begun`, `running`, `done`, `failed`, or in words that its time was over.
        seconds: that it took.
        error: why it failed; the end of what it printed.
        figures: rows of its table; columns by name, a number or text each.
    """

    name: str
    title: str
    state: str = "not begun"
    seconds: float = 0.0
    error: str = ""
    figures: list[Figure] = field(default_factory=list)


@dataclass
class Report:
    """The whole check.

    Attributes:
        about: machine, device, date, versions, seed.
        parts: in the order in which they run.
    """

    about: dict[str, str]
    parts: list[Part]

    def write(self, folder: Path) -> None:
        """Write both files into the folder, each whole or not at all."""
        _replace(folder / "card.json", json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        _replace(folder / "card.md", self.markdown())

    def markdown(self) -> str:
        """The figures as Markdown, to be pasted where figures of this kind stand."""
        sections = ["; ".join(f"{name} {value}" for name, value in self.about.items())]
        for part in self.parts:
            took = f", {part.seconds:.0f} s" if part.seconds else ""
            sections.append(f"**{part.title}** ({part.state}{took})")
            if part.figures:
                sections.append(table(part.figures))
            if part.error:
                sections.append(f"```\n{part.error}\n```")
        return "\n\n".join(sections) + "\n"


def table(figures: list[Figure]) -> str:
    """A Markdown table with the columns of all figures, in the order in which they first come."""
    columns = list(dict.fromkeys(name for figure in figures for name in figure))
    rows = [columns, ["---"] * len(columns), *([cell(figure.get(name)) for name in columns] for figure in figures)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(value: Any) -> str:
    """A number with three digits, or four from 1000 on; text as it is; nothing for None."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def line(figure: Figure) -> str:
    """A figure on one line of the console."""
    texts: list[str] = []
    numbers: list[str] = []
    for name, value in figure.items():
        if isinstance(value, str) and not numbers:
            texts.append(value)
        elif value is not None:
            numbers.append(f"{name} {cell(value)}")
    return "; ".join([", ".join(texts), ", ".join(numbers)])


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
