"""A sweep as one labeled picture, as the paper's Fig. 5; for nodes, trainer and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

INK, PAPER = (32, 32, 32), (255, 255, 255)


def draw_sheet(
    rows: Sequence[Sequence[Image]], gammas: Sequence[float], references: Sequence[Image] = (), title: str = ""
) -> Image:
    """Lay rows of pictures, all of one size, out in columns of equal γ, labels on top.

    Args:
        references: shown on the left: none, one for all rows, or one per row.
        title: a line above; empty for none.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, height = rows[0][0].size
    size = max(12, min(width, height) // 10)
    font, gap, line = ImageFont.load_default(size), max(2, size // 3), size * 3 // 2
    heading = line if title.strip() else 0
    shown = [references[min(row, len(references) - 1)] for row in range(len(rows))] if references else []
    left = width + 3 * gap if shown else 0
    sheet = Image.new(
        "RGB", (left + len(gammas) * (width + gap) + gap, heading + line + gap + len(rows) * (height + gap)), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    if heading:
        draw.text((sheet.width // 2, heading // 2 + gap), title.strip(), INK, font, anchor="mm")
    top = heading + line

    def label(x: int, text: str) -> None:
        draw.text((x + width // 2, heading + line // 2 + gap // 2), text, INK, font, anchor="mm")

    if shown:
        label(gap, "reference")
    for column, gamma in enumerate(gammas):
        # Pillow's own font has no γ.
        label(left + gap + column * (width + gap), f"gamma {gamma:g}")
    for number, row in enumerate(rows):
        y = top + gap + number * (height + gap)
        if shown:
            small = shown[number].copy()
            small.thumbnail((width, height), Image.Resampling.LANCZOS)
            sheet.paste(small, (gap + (width - small.width) // 2, y + (height - small.height) // 2))
        for column, picture in enumerate(row):
            sheet.paste(picture, (left + gap + column * (width + gap), y))
    return sheet
