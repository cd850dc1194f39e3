"""Fig. 6 of any adapter: zero-shot style transfer, methods side by side.

The paper says of it that it asks for "instruction following and detailed image information extraction" (section 4.4),
and not whether the reference gives the style or the subject. Here a line is a reference with a prompt, so both can be
drawn: a style's picture with what to draw, or a subject's with the style in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...images.contact_sheet import draw_cells
from ..generate.drawer import Files
from ..generate.plan import Request
from ..reading import read_picture
from .drawing import Drawing, below, describe, draw_pictures, wrapped

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 192
"""Pixels of a cell (our choice)."""


class Column(NamedTuple):
    """A method of the figure, with the values of its knob; a base alone has one value that nothing reads."""

    name: str
    files: Files
    values: tuple[float, ...]


def style(
    columns: Sequence[Column], drawing: Drawing, references: Sequence[Path], prompts: Sequence[str], seed: int
) -> tuple[Image, dict[str, Any]]:
    """Draw the figure: a line per reference and prompt, a column per method and value, all from one noise.

    Returns:
        The picture, and what was drawn.

    Raises:
        FlexIPError: as `draw_pictures`.
    """
    shown = {path: read_picture(path) for path in references}
    lines = [(reference, prompt) for reference in references for prompt in prompts]
    cells: dict[tuple[Path, str], list[tuple[str, Image | str]]] = {
        line: [("prompt", wrapped(line[1], SIDE // 9)), ("reference", _square(shown[line[0]]))] for line in lines
    }
    methods = []
    for column in columns:
        requests = {(line, value): Request(*line, seed, value) for line in lines for value in column.values}
        drawn = draw_pictures(column.files, drawing, list(requests.values()))
        methods.append({"name": column.name, "knob": drawn.knob, "values": list(column.values), **drawn.record})
        for (line, value), request in requests.items():
            label = f"{column.name}, {drawn.knob} {value:g}" if drawn.knob else column.name
            cells[line].append((label, drawn.pictures[request]))
    sheet = draw_cells([cell for own in cells.values() for cell in own], len(cells[lines[0]]), SIDE)
    return below(sheet, drawing.notes), {
        "figure": "style (Fig. 6)",
        "lines": [{"reference": describe(reference), "prompt": prompt} for reference, prompt in lines],
        "seed": seed,
        "columns": methods,
        "notes": list(drawing.notes),
    }


def _square(picture: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.pad(picture, (SIDE, SIDE), color=(255, 255, 255))
