"""FlexIP Sweep Grid: a sweep as one labeled picture, as the paper's Fig. 5."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..flexip_model.common.errors import FlexIPError
from ..flexip_model.images.contact_sheet import draw_sheet
from .host import fields
from .wires import FlexIPGammas

CATEGORY = "FlexIP"


def pictures_of(images: Tensor) -> list[Image.Image]:
    """(N, H, W, C) in [0, 1] → pictures of 8 bits."""
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
    cells = pictures_of(images)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    references = [] if reference is None else pictures_of(reference)
    sheet = draw_sheet(rows, gammas, references[:1] if len(references) < len(rows) else references, title)
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


class FlexIPSweepGrid(io.ComfyNode):
    """A sweep as one labeled picture."""

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
            **fields(io.Schema, search_aliases=["contact sheet", "labeled grid", "xy plot", "gamma sweep"]),
        )

    @classmethod
    def execute(
        cls, images: Tensor, gammas: list[float], reference: Tensor | None = None, title: str = ""
    ) -> io.NodeOutput:
        return io.NodeOutput(draw_grid(images, gammas, reference, title))
