"""Fig. 5 of any adapter: one subject and one prompt, γ from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import FlexIPError
from ...images.contact_sheet import draw_sheet
from ..generate.drawer import Files
from ..generate.plan import Request
from ..reading import read_picture
from .drawing import Drawing, below, describe, draw_pictures

if TYPE_CHECKING:
    from PIL.Image import Image


def strip(
    files: Files, drawing: Drawing, reference: Path, prompt: str, values: Sequence[float], seeds: Sequence[int]
) -> tuple[Image, dict[str, Any]]:
    """Draw the figure: a row per seed, a column per γ (or IP-Adapter's scale), all of a row from one noise.

    Returns:
        The picture, and what was drawn.

    Raises:
        FlexIPError: as `draw_pictures`; no adapter, which has no γ.
    """
    shown = read_picture(reference)
    if files.adapter is None and files.ip_adapter is None:
        raise FlexIPError("a strip needs an adapter, whose knob it turns; name one with --adapter or --ip-adapter")
    rows = [[Request(reference, prompt, seed, value) for value in values] for seed in seeds]
    drawn = draw_pictures(files, drawing, [request for row in rows for request in row])
    pictures = [[drawn.pictures[request] for request in row] for row in rows]
    sheet = draw_sheet(pictures, values, [shown], prompt, knob=drawn.knob or "")
    return below(sheet, drawing.notes), {
        "figure": "strip (Fig. 5)",
        "reference": describe(reference),
        "prompt": prompt,
        "knob": drawn.knob,
        "columns": list(values),
        "rows_are_seeds": list(seeds),
        "drawn_with": drawn.record,
        "notes": list(drawing.notes),
    }
