"""FlexIP Sweep Grid: a sweep as one labelled picture, as the paper's Fig. 5."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..flexip_model.errors import FlexIPError
from .wires import FlexIPGammas

CATEGORY = "FlexIP"
INK, PAPER = (32, 32, 32), (255, 255, 255)


def _pictures(images: Tensor) -> list[Image.Image]:
    values = (images[..., :3].detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    return [Image.fromarray(value) for value in values]


def draw_grid(images: Tensor, gammas: list[float], reference: Tensor | None = None, title: str = "") -> Tensor:
    """Lay pictures out in columns of equal γ, one row per sweep, labels on top.

    Args:
        images: (N, H, W, C) in [0, 1]; N is a multiple of the number of γ, row by row.
        reference: (R, h, w, c) shown on the left: one for all rows, or one per row; or None.
        title: a line above; empty for none.

    Returns:
        (1, height, width, 3) in [0, 1].

    Raises:
        FlexIPError: the numbers of pictures and γ do not fit.
    """
    columns = len(gammas)
    if columns == 0 or len(images) == 0 or len(images) % columns:
        raise FlexIPError(
            f"there are {len(images)} pictures for {columns} γ values; connect the γ list of the sweep that made them"
        )
    cells, rows = _pictures(images), len(images) // columns
    width, height = cells[0].size
    size = max(12, min(width, height) // 10)
    font, gap, line = ImageFont.load_default(size), max(2, size // 3), size * 3 // 2
    heading = line if title.strip() else 0
    references: list[Image.Image] = []
    if reference is not None:
        references = _pictures(reference)[:rows]
        references += [references[0]] * (rows - len(references))
    left = width + 3 * gap if references else 0
    sheet = Image.new(
        "RGB",
        (left + columns * (width + gap) + gap, heading + line + gap + rows * (height + gap)),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    if heading:
        draw.text((sheet.width // 2, heading // 2 + gap), title.strip(), INK, font, anchor="mm")
    top = heading + line

    def label(x: int, text: str) -> None:
        draw.text((x + width // 2, heading + line // 2 + gap // 2), text, INK, font, anchor="mm")

    if references:
        label(gap, "reference")
    for column, gamma in enumerate(gammas):
        # Pillow's own font has no γ.
        label(left + gap + column * (width + gap), f"gamma {gamma:g}")
    for row in range(rows):
        y = top + gap + row * (height + gap)
        if references:
            shown = references[row].copy()
            shown.thumbnail((width, height), Image.Resampling.LANCZOS)
            sheet.paste(shown, (gap + (width - shown.width) // 2, y + (height - shown.height) // 2))
        for column in range(columns):
            sheet.paste(cells[row * columns + column], (left + gap + column * (width + gap), y))
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


class FlexIPSweepGrid(io.ComfyNode):
    """A sweep as one labelled picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlexIPSweepGrid",
            display_name="FlexIP Sweep Grid",
            category=CATEGORY,
            description="Lays the pictures of a γ sweep side by side with their γ, the reference on the left.",
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The sweep's pictures in its order. Several sweeps in one batch give several rows.",
                ),
                FlexIPGammas.Input("gammas", tooltip="The γ list of FlexIP γ Sweep."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="The reference, shown on the left; one for all rows or one per row.",
                ),
                io.String.Input(
                    "title", default="", optional=True, tooltip="A line above the pictures; empty for none."
                ),
            ],
            outputs=[io.Image.Output("grid", display_name="image", tooltip="One picture of the whole sweep.")],
        )

    @classmethod
    def execute(
        cls, images: Tensor, gammas: list[float], reference: Tensor | None = None, title: str = ""
    ) -> io.NodeOutput:
        return io.NodeOutput(draw_grid(images, gammas, reference, title))
