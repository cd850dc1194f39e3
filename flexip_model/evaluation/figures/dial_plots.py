"""The plots below the dial's pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.drawing import COLORS
from .dial_scores import Scores

if TYPE_CHECKING:
    from PIL.Image import Image

DPI = 100


def draw_plots(scored: Mapping[str, Scores], preservation: str, fidelity: str, distance: str, width: int) -> Image:
    """Preservation, text fidelity and speed over the knob, and the way through both scores.

    Args:
        scored: by method, with its knob in the name.
        preservation, fidelity: titles; empty where nothing measures them, which the plot then says.
        distance: what pictures are compared by.
        width: of the whole, pixels.

    Returns:
        RGB.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from PIL import Image

    figure, axes = pyplot.subplots(2, 2, figsize=(width / DPI, 0.5 * width / DPI), dpi=DPI, layout="constrained")
    (first, second), (third, fourth) = axes
    _scores(
        first,
        {name: [s.preservation for s in own.sweeps] for name, own in scored.items()},
        scored,
        preservation,
        "Preservation",
    )
    _scores(
        second,
        {name: [s.fidelity for s in own.sweeps] for name, own in scored.items()},
        scored,
        fidelity,
        "Text fidelity",
    )
    for (name, own), color in zip(scored.items(), COLORS, strict=False):
        knob = own.sweeps[0].knob
        third.step(knob, [*own.speed, own.speed[-1]], where="post", color=color, label=name)
    third.axhline(1, color="#999", lw=0.8, ls=":")
    third.set(xlabel="knob", ylabel="speed / mean speed", title=f"How fast a turn moves ({distance}); even is 1")
    if preservation and fidelity:
        for (name, own), color in zip(scored.items(), COLORS, strict=False):
            fourth.plot(own.preservation, own.fidelity, "o-", color=color, ms=4, label=name)
            for index in (0, -1):
                at = (own.preservation[index], own.fidelity[index])
                text = f"{own.sweeps[0].knob[index]:g}"
                fourth.annotate(text, at, xytext=(4, 4), textcoords="offset points", fontsize=8, color=color)
        fourth.set(xlabel=preservation, ylabel=fidelity, title="The way through both scores")
    else:
        _say(fourth, "Preservation against text fidelity\nneeds both scores.")
    first.legend(fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    pyplot.close(figure)
    return Image.open(data).convert("RGB")


def _scores(
    axis: Any, lines: Mapping[str, list[np.ndarray]], scored: Mapping[str, Scores], title: str, what: str
) -> None:
    """The mean over seeds, and each seed as a thin line."""
    if not title:
        _say(axis, f"{what} is not measured;\nthe last line below says what it lacks.")
        return
    for (name, rows), color in zip(lines.items(), COLORS, strict=False):
        knob = scored[name].sweeps[0].knob
        for row in rows if len(rows) > 1 else ():
            axis.plot(knob, row, color=color, lw=0.7, alpha=0.4)
        axis.plot(knob, np.mean(rows, 0), "o-", color=color, ms=4, label=name)
    axis.set(xlabel="knob", ylabel=title, title=title)


def _say(axis: Any, text: str) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", color="#555", transform=axis.transAxes)
