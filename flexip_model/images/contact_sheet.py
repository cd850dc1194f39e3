"""Several pictures as one: a γ sweep, as the paper's Fig. 5, or labeled cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

INK, PAPER, BOARD = (32, 32, 32), (255, 255, 255), (225, 225, 225)


def draw_sheet(
    rows: Sequence[Sequence[Image]],
    gammas: Sequence[float],
    references: Sequence[Image] = (),
    title: str = "",
    notes: Sequence[Sequence[str]] = (),
    knob: str = "gamma",
) -> Image:
    """Lay rows of pictures, all of one size, out in columns of equal γ, labels on top.

    Args:
        references: shown on the left: none, one for all rows, or one per row.
        title: a line above; empty for none.
        notes: a text below each picture, of one line or more, in the order of `rows`; or none at all.
        knob: what the columns' numbers are of; Pillow's own font has no γ.

    Returns:
        RGB.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, height = rows[0][0].size
    size = max(12, min(width, height) // 10)
    font, gap, line = ImageFont.load_default(size), max(2, size // 3), size * 3 // 2
    heading = line if title.strip() else 0
    shown = [references[min(row, len(references) - 1)] for row in range(len(rows))] if references else []
    left = width + 3 * gap if shown else 0
    below = line * max((note.count("\n") + 1 for row in notes for note in row), default=0)
    step = height + gap + below
    sheet = Image.new("RGB", (left + len(gammas) * (width + gap) + gap, heading + line + gap + len(rows) * step), PAPER)
    draw = ImageDraw.Draw(sheet)
    if heading:
        draw.text((sheet.width // 2, heading // 2 + gap), title.strip(), INK, font, anchor="mm")
    top = heading + line

    def label(x: int, text: str) -> None:
        draw.text((x + width // 2, heading + line // 2 + gap // 2), text, INK, font, anchor="mm")

    if shown:
        label(gap, "reference")
    for column, gamma in enumerate(gammas):
        label(left + gap + column * (width + gap), f"{knob} {gamma:g}")
    for number, row in enumerate(rows):
        y = top + gap + number * step
        if shown:
            small = shown[number].copy()
            small.thumbnail((width, height), Image.Resampling.LANCZOS)
            sheet.paste(small, (gap + (width - small.width) // 2, y + (height - small.height) // 2))
        for column, picture in enumerate(row):
            x = left + gap + column * (width + gap)
            sheet.paste(picture, (x, y))
            if notes:
                middle = (x + width // 2, y + height + below // 2)
                draw.multiline_text(middle, notes[number][column], INK, font, anchor="mm", align="center")
    return sheet


def draw_cells(cells: Sequence[tuple[str, Image | str]], columns: int, side: int = 160) -> Image:
    """Lay square cells out row by row, each with its label above.

    Args:
        cells: label, and a picture of any size or mode, or words on gray; where no label has letters, none has a place.
        side: of a cell, pixels.

    Returns:
        RGB.
    """
    from PIL import Image, ImageDraw, ImageFont

    gap, font = 6, ImageFont.load_default(15)
    line = 22 if any(label for label, _ in cells) else 0
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + line + gap) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (label, shown) in enumerate(cells):
        x, y = gap + index % columns * (side + gap), gap + index // columns * (side + line + gap)
        draw.text((x + side // 2, y + line // 2), label, INK, font, anchor="mm")
        if isinstance(shown, str):
            cell = Image.new("RGB", (side, side), BOARD)
            middle = (side // 2, side // 2)
            ImageDraw.Draw(cell).multiline_text(middle, shown, INK, font, anchor="mm", align="center")
        else:
            cell = shown.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(cell, (x, y + line))
    return sheet
