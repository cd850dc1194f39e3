"""What the figures share: pictures of several methods, notes below a sheet, and the two files that are written."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...common.console import Progress
from ...common.errors import FlexIPError
from ...files.safefile import atomic, sha256
from ...images.contact_sheet import INK, PAPER
from ..generate.drawer import Drawer, Files, Sampling
from ..generate.plan import Request, batches
from ..scoring.store import write_json

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Drawing:
    """How a figure's pictures are drawn.

    Attributes:
        device: where.
        batch: pictures at once.
        notes: sentences that stand below the figure, such as what its model cannot do.
    """

    sampling: Sampling
    device: torch.device
    batch: int = 4
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """The pictures of one method.

    Attributes:
        knob: `gamma`, `scale` or None without an adapter.
        record: what drew them (`Drawer.record`).
        pictures: by request, all of one size.
    """

    knob: str | None
    record: dict[str, Any]
    pictures: dict[Request, Image]


def draw_pictures(files: Files, drawing: Drawing, requests: Sequence[Request]) -> Drawn:
    """Draw requests, each once.

    Raises:
        FlexIPError: as `Drawer`; a reference that cannot be read; NaN pixels.
    """
    from torchvision.transforms.functional import to_pil_image

    drawer = Drawer(files, drawing.sampling, drawing.device)
    every = list(dict.fromkeys(requests))
    progress = Progress(lambda done: f"{done} of {len(every)} pictures", total=len(every), seconds=10.0)
    found: dict[Request, Image] = {}
    for batch in batches(every, drawing.batch, drawer.one_value):
        for request, pixels in zip(batch, drawer.draw(batch), strict=True):
            if not bool(torch.isfinite(pixels).all()):
                raise FlexIPError(f"the picture of {request.prompt!r} has NaN values; draw on a device with float32")
            found[request] = to_pil_image(pixels)
        progress.add(len(batch))
    return Drawn(drawer.knob, drawer.record(), found)


def wrapped(text: str, characters: int) -> str:
    """A text in lines of at most so many characters."""
    return "\n".join(textwrap.wrap(text, characters))


def below(sheet: Image, notes: Sequence[str]) -> Image:
    """A sheet with sentences below it."""
    from PIL import Image, ImageDraw, ImageFont

    size, gap = 13, 8
    font = ImageFont.load_default(size)
    lines = [line for note in notes for line in textwrap.wrap(note, max(20, int((sheet.width - 2 * gap) / 6.6)))]
    if not lines:
        return sheet
    whole = Image.new("RGB", (sheet.width, sheet.height + gap + len(lines) * (size + 4)), PAPER)
    whole.paste(sheet, (0, 0))
    ImageDraw.Draw(whole).multiline_text((gap, sheet.height), "\n".join(lines), INK, font, spacing=4)
    return whole


def describe(path: Path) -> dict[str, str]:
    """A reference in the record."""
    return {"file": path.name, "sha256": sha256(path)}


def write_figure(out: Path, sheet: Image, record: dict[str, Any]) -> None:
    """The PNG, and a JSON file of what was drawn beside it."""
    with atomic(out) as path:
        sheet.save(path, "PNG")
    write_json(out.with_suffix(".json"), record)
