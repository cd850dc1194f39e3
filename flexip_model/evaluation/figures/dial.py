"""Fig. 1's bottom, of any adapter: FlexIP against IP-Adapter over the dial, pictures and what they score.

The paper shows pictures alone. Curves of preservation and of text fidelity, how fast each turn moves, and the way
through both scores stand below them (our choice), so that "smooth" and "abrupt" are more than an impression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import FlexIPError
from ...images.contact_sheet import PAPER, draw_cells
from ..generate.drawer import Files
from ..generate.plan import Request
from ..metrics.definitions import DEFINITIONS
from ..metrics.measure import Measure
from ..reading import read_picture
from .dial_plots import draw_plots
from .dial_scores import FIDELITY, Scores, preservation_metric, score, tell_measures, weights_of
from .drawing import Drawing, below, describe, draw_pictures, wrapped

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, SHOWN = 128, 9
"""Pixels of a cell, and how many pictures of a sweep are shown (our choice); all are measured."""


@dataclass(frozen=True)
class Turned:
    """A method whose knob is turned.

    Attributes:
        name: on the figure.
        files: what draws it.
        by_strength: whether the knob is the strength of the preservation branch alone (γ = 1). That is what an
            IP-Adapter's scale is, for where there is no IP-Adapter of the same base.
    """

    name: str
    files: Files
    by_strength: bool = False

    def request(self, reference: Path, prompt: str, seed: int, value: float) -> Request:
        """The picture at a value of the knob."""
        at = Request(reference, prompt, seed, value)
        return replace(at, value=1.0, strength=value) if self.by_strength else at


def dial(
    methods: Sequence[Turned],
    drawing: Drawing,
    measure: Measure,
    reference: Path,
    prompt: str,
    values: Sequence[float],
    seeds: Sequence[int],
) -> tuple[Image, dict[str, Any]]:
    """Draw the figure: the first seed's pictures, a row per method, and plots of the mean over seeds.

    Args:
        measure: of `PRESERVATION` and `FIDELITY`; what it lacks is said in the figure.
        values: of every method's knob, at least three, rising.

    Returns:
        The picture, and what was drawn and measured.

    Raises:
        FlexIPError: as `draw_pictures`; fewer than three values, or values that do not rise.
    """
    if len(values) < 3 or sorted(set(values)) != list(values):
        raise FlexIPError(f"the dial's values are {list(values)}; expected at least three, rising")
    shown = read_picture(reference)
    scored: dict[str, Scores] = {}
    rows: dict[str, list[Image]] = {}
    told = []
    for method in methods:
        wanted = [[method.request(reference, prompt, seed, value) for value in values] for seed in seeds]
        drawn = draw_pictures(method.files, drawing, [request for row in wanted for request in row])
        pictures = [[drawn.pictures[request] for request in row] for row in wanted]
        name = f"{method.name}, {'strength' if method.by_strength else drawn.knob}"
        scored[name], rows[name] = score(measure, pictures, shown, prompt, values), pictures[0]
        told.append({"name": name, "drawn_with": drawn.record, **_told(scored[name])})
    metric = preservation_metric(measure)
    sheet = _stack(
        _grid(rows, shown, prompt, values),
        draw_plots(
            scored,
            DEFINITIONS[metric].title if metric else "",
            DEFINITIONS[FIDELITY].title if FIDELITY in measure.metrics else "",
            "DINO" if "dino-i" in measure.metrics else "pixels",
            (min(len(values), SHOWN) + 2) * SIDE,
        ),
    )
    seeds_shown = f"Pictures of seed {seeds[0]}; curves are the mean of {len(seeds)} seeds, thin lines are one each."
    notes = [seeds_shown, *drawing.notes, *tell_measures(measure)]
    return below(sheet, notes), {
        "figure": "dial (Fig. 1)",
        "reference": describe(reference),
        "prompt": prompt,
        "values": list(values),
        "seeds": list(seeds),
        "preservation": metric,
        "weights": weights_of(measure),
        "methods": told,
        "notes": notes,
    }


def _told(scores: Scores) -> dict[str, Any]:
    """A method's numbers, in JSON's types; None where nothing measured them."""

    def plain(values: Any) -> list[float | None]:
        return [None if value != value else round(float(value), 6) for value in values]

    return {
        "preservation": [plain(sweep.preservation) for sweep in scores.sweeps],
        "fidelity": [plain(sweep.fidelity) for sweep in scores.sweeps],
        "speed": plain(scores.speed),
        "control": scores.control(),
    }


def _grid(rows: dict[str, list[Image]], reference: Image, prompt: str, values: Sequence[float]) -> Image:
    """The reference and the prompt on the left, a row per method with its name; of many values evenly many."""
    from PIL import ImageOps

    count = min(len(values), SHOWN)
    picked = [round(index * (len(values) - 1) / (count - 1)) for index in range(count)]
    left: list[tuple[str, Image | str]] = [
        ("reference", ImageOps.pad(reference, (SIDE, SIDE), color=PAPER)),
        ("prompt", wrapped(prompt, SIDE // 9)),
    ]
    cells: list[tuple[str, Image | str]] = []
    for number, (name, pictures) in enumerate(rows.items()):
        cells += [left[number] if number < len(left) else ("", ""), ("", wrapped(name, SIDE // 9))]
        cells += [(f"{name.rpartition(', ')[2]} {values[index]:g}", pictures[index]) for index in picked]
    return draw_cells(cells, count + 2, SIDE)


def _stack(above: Image, lower: Image) -> Image:
    from PIL import Image as Pillow

    whole = Pillow.new("RGB", (max(above.width, lower.width), above.height + lower.height), PAPER)
    whole.paste(above, (0, 0))
    whole.paste(lower, ((whole.width - lower.width) // 2, above.height))
    return whole
