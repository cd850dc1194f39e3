"""Maps of attention as one picture, after the paper's Fig. 7: white is high.

Attention weights are each drawn from their own lowest (black) to their own highest value (white), because one group of
tokens may have a twentieth of another's, and the numbers stand above; contributions all from 0 to one highest value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .contact_sheet import BOARD, draw_cells

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = {"queries": "queries", "cls": "CLS", "s": "S (prompt)", "text": "text"}
"""The groups of tokens that are shown, with their names on the sheet."""
KINDS = ("attention weights", "contributions")
ABOVE = (
    "above: attention weights,\neach from its lowest (black)\nto its highest (white)\n\n"
    "here: contributions, all on\none scale, black 0, white "
)
UNREAD = {"s": "S reads no patch,\nonly the [CLS]", "text": "the text does not\nread the reference"}
"""Why a reference has no maps of these groups."""
SIDE = 224
"""Pixels of a cell (our choice)."""


class MapRows(NamedTuple):
    """Maps of one picture, or of the reference.

    Attributes:
        label: above the picture.
        picture: what the maps lie on; any size and mode.
        weights, contributions: (h, w) by group, of the picture's proportions.
        absent: for groups without a map, why, in words of few lines.
    """

    label: str
    picture: Image
    weights: Mapping[str, Tensor]
    contributions: Mapping[str, Tensor]
    absent: Mapping[str, str]


def rows_of(
    labels: Sequence[str],
    pictures: Sequence[Image],
    weights: Mapping[str, Tensor],
    contributions: Mapping[str, Tensor],
    absent: Mapping[str, str],
) -> list[MapRows]:
    """The maps of a batch, picture by picture: weights and contributions (B, h, w) by group, without absent groups."""

    def of(kind: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        return {group: values[number] for group, values in kind.items() if group not in absent}

    return [
        MapRows(label, picture, of(weights, number), of(contributions, number), absent)
        for number, (label, picture) in enumerate(zip(labels, pictures, strict=True))
    ]


def draw_map_sheet(
    shown: Sequence[MapRows], groups: Sequence[str] = tuple(COLUMNS), kinds: Sequence[str] = KINDS
) -> Image:
    """Lay pictures and their maps out: a line per picture and kind, a column per group of tokens.

    Contributions in the picture have one scale for all groups and all pictures that have the same groups, which a
    reference has not.

    Args:
        groups: some of `COLUMNS`.
        kinds: some of `KINDS`.

    Returns:
        RGB.
    """
    cells: list[tuple[str, Image | str]] = []
    for rows in shown:
        alike = [other for other in shown if set(other.contributions) == set(rows.contributions)]
        drawn = [other.contributions[group] for other in alike for group in groups if group in other.contributions]
        most = max((float(values.max()) for values in drawn), default=0.0)
        for number, kind in enumerate(kinds):
            cells.append((rows.label, _square(rows.picture)) if number == 0 else ("", f"{ABOVE}{most:.3g}"))
            for group in groups:
                values = (rows.weights if kind == KINDS[0] else rows.contributions).get(group)
                name = COLUMNS[group]
                if values is None:
                    cells.append((name, rows.absent.get(group, "")))
                    continue
                low, high = (float(values.min()), float(values.max())) if kind == KINDS[0] else (0.0, most)
                span = f"{_share(low)}-{_share(high)}%" if kind == KINDS[0] else f"mean {float(values.mean()):.2g}"
                cells.append((f"{name} {span}", _square(draw_map(values, low, high))))
    return draw_cells(cells, len(groups) + 1, SIDE)


def draw_map(values: Tensor, low: float, high: float) -> Image:
    """(h, w) → a gray picture of h × w pixels: black at `low`, white at `high`; all black where they are equal."""
    from PIL import Image

    scaled = ((values.float() - low) / max(high - low, 1e-12)).clamp(0, 1)
    return Image.fromarray((scaled * 255).round().byte().cpu().numpy())


def _share(value: float) -> str:
    return f"{100 * value:.3g}" if value >= 1e-4 else "0"


def _square(picture: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.pad(picture.convert("RGB"), (SIDE, SIDE), color=BOARD)
