"""Figures and pictures as data addresses, so that a page is one file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

from ...common.errors import FlexIPError
from ..reading import read_picture
from ..summary.table import Figure

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 160
"""Pixels of a picture in the page."""
COLORS = ("#1f5fa8", "#d07a1a", "#3a8f4d", "#9a3f8f", "#b0352c", "#4b4b9f", "#7a6a1a", "#2a8f8f")
GRAY = (194, 194, 194)
"""In the place of a picture that cannot be read."""


def embed_picture(path: Path, side: int = SIDE) -> str:
    """A picture as a small JPEG in a data address; a gray square where it cannot be read."""
    from PIL import Image as Pillow

    try:
        picture = read_picture(path)
    except FlexIPError:
        picture = Pillow.new("RGB", (8, 8), GRAY)
    return embed(picture, side)


def embed(picture: Image, side: int = SIDE) -> str:
    picture = picture.copy()
    picture.thumbnail((side, side))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return _address("image/jpeg", data.getvalue())


def scatter(points: Sequence[tuple[str, Figure, Figure]], published: Mapping[str, tuple[float, float]], x: str) -> str:
    """The paper's Fig. 2: preservation to the right, text fidelity upwards, with intervals; the paper's own in gray.

    Args:
        points: label, preservation, text fidelity.
        published: method to the same two, as printed.
        x: the preservation's title.
    """
    figure, axis = _figure(6.4, 4.6)
    for place, (label, right, up) in enumerate(points):
        color = COLORS[place % len(COLORS)]
        sides = [[[cell.value - cell.low], [cell.high - cell.value]] for cell in (right, up)]
        bars = [[[max(part[0], 0)] for part in side] for side in sides]
        axis.errorbar(right.value, up.value, bars[1], bars[0], "o", color=color, lw=1, label=label)
    for name, (across, above) in published.items():
        axis.plot(across, above, "x", color="#aaa")
        axis.annotate(name, (across, above), fontsize=7, color="#888", xytext=(4, 3), textcoords="offset points")
    if published:
        axis.plot([], [], "x", color="#aaa", label="the paper's Table 1 (other pictures and weights)")
    axis.set(xlabel=x, ylabel="CLIP-T")
    axis.legend(fontsize=7)
    return _svg(figure)


def curves(lines: Mapping[str, Sequence[tuple[float, Figure]]], knob: str, title: str) -> str:
    """A metric over the knob for each method, with intervals."""
    figure, axis = _figure(5.2, 3.4)
    for (label, points), color in zip(lines.items(), COLORS, strict=False):
        at = [value for value, _ in points]
        axis.plot(at, [cell.value for _, cell in points], "o-", color=color, label=label)
        axis.fill_between(at, [c.low for _, c in points], [c.high for _, c in points], color=color, alpha=0.2)
    axis.set(xlabel=knob, ylabel=title)
    axis.legend(fontsize=7)
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> str:
    from matplotlib import pyplot, rc_context

    data = io.BytesIO()
    with rc_context({"svg.hashsalt": "flexip", "svg.fonttype": "path"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return _address("image/svg+xml", data.getvalue())


def _address(kind: str, data: bytes) -> str:
    """Percent-encoded, so that what a page holds can be told by reading it; no source here imports base64."""
    return f"data:{kind},{quote_from_bytes(data)}"
