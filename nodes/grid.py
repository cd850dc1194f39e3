"""FlexIP Sweep Grid: a sweep as one labeled picture, as the paper's Fig. 5."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..flexip_model.common.errors import FlexIPError
from ..flexip_model.images.contact_sheet import draw_sheet
from .host import fields
from .wires import FlexIPGammas, FlexIPLabels

CATEGORY = "FlexIP"


def pictures_of(images: Tensor) -> list[Image.Image]:
    """(N, H, W, C) in [0, 1] → pictures of 8 bits."""
    values = (images[..., :3].detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    return [Image.fromarray(value) for value in values]


def draw_grid(
    images: Tensor,
    gammas: list[float],
    reference: Tensor | None = None,
    title: str = "",
    labels: Sequence[str] = (),
) -> Tensor:
    """Lay pictures out in columns of equal γ, one row per sweep, labels on top.

    Args:
        images: (N, H, W, C) in [0, 1]; N is a multiple of the number of γ, row by row.
        reference: (R, h, w, c) shown on the left: one for all rows, or one per row; or None.
        title: a line above; empty for none.
        labels: a text below each picture, of one line or more; or none at all.

    Returns:
        (1, height, width, 3) in [0, 1].

    Raises:
        FlexIPError: the numbers of pictures, γ and labels do not fit.
    """
    columns = len(gammas)
    if columns == 0 or len(images) == 0 or len(images) % columns:
        raise FlexIPError(
            f"there are {len(images)} pictures for {columns} γ values; connect the γ list of the sweep that made them"
        )
    if labels and len(labels) != len(images):
        raise FlexIPError(
            f"there are {len(images)} pictures and {len(labels)} labels; connect the labels of the same pictures"
        )
    cells = pictures_of(images)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    references = [] if reference is None else pictures_of(reference)
    shown = references[:1] if len(references) < len(rows) else references
    notes = [labels[start : start + columns] for start in range(0, len(labels), columns)]
    sheet = draw_sheet(rows, gammas, shown, title, notes)
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


class FlexIPSweepGrid(io.ComfyNode):
    """A sweep as one labeled picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlexIPSweepGrid",
            display_name="FlexIP Sweep Grid",
            category=CATEGORY,
            description="Lays the pictures of a γ sweep side by side with their γ, the reference on the left; "
            "with FlexIP Score, their scores below.",
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
                FlexIPLabels.Input(
                    "labels", optional=True, tooltip="Labels of FlexIP Score, shown below the pictures."
                ),
            ],
            outputs=[io.Image.Output("grid", display_name="image", tooltip="One picture of the whole sweep.")],
            **fields(io.Schema, search_aliases=["contact sheet", "labeled grid", "xy plot", "gamma sweep"]),
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        gammas: list[float],
        reference: Tensor | None = None,
        title: str = "",
        labels: Sequence[str] = (),
    ) -> io.NodeOutput:
        return io.NodeOutput(draw_grid(images, gammas, reference, title, labels))
