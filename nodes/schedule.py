"""What the text inputs of Apply FlexIP mean: a γ curve over the steps, weights per block."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from typing import Any

from ..flexip_model.common.errors import FlexIPError
from ..flexip_model.common.gammas import without_brackets
from ..flexip_model.method.sites import SD15_SITES, sites_named

Curve = tuple[tuple[float, float], ...]
SAMPLES = 257


def _number(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise FlexIPError(f'{what} is "{text.strip()}"; expected a number from {low:g} to {high:g}')
    return value


def parse_curve(text: str) -> Curve | None:
    """Read a γ curve: key points `position:γ` ("0:1, 0.5:0.8, 1:0.2"), or γ values spread evenly ("1, 0.8, 0.2").

    Returns:
        Key points in rising order of position (0 first step, 1 last); None for an empty text.

    Raises:
        FlexIPError: not numbers, outside [0, 1], both forms mixed, positions that do not rise.
    """
    parts = [part for part in without_brackets(text).replace("\n", ",").split(",") if part.strip()]
    if not parts:
        return None
    pairs = [part.split(":") for part in parts]
    lengths = {len(pair) for pair in pairs}
    if lengths == {1}:
        last = max(len(pairs) - 1, 1)
        return tuple((i / last, _number(pair[0], 0, 1, "γ in the curve")) for i, pair in enumerate(pairs))
    if lengths != {2}:
        raise FlexIPError(f'the γ curve is "{text}"; expected points such as 0:1, 0.5:0.8, 1:0.2 or values 1, 0.8, 0.2')
    points = tuple((_number(p, 0, 1, "a position in the curve"), _number(g, 0, 1, "γ in the curve")) for p, g in pairs)
    if any(a >= b for (a, _), (b, _) in itertools.pairwise(points)):
        raise FlexIPError(f'the γ curve is "{text}"; its positions must rise from point to point')
    return points


def read_curve(given: Any) -> Curve | None:
    """What is typed or connected as γ over the steps: text, or the host's `CURVE` (an object with `interp`).

    A `CURVE` is taken at `SAMPLES` places, straight between them: smooth curves to within 1e-4 of γ.

    Returns:
        As `parse_curve`.

    Raises:
        FlexIPError: as `parse_curve`; a curve that leaves [0, 1]; something else.
    """
    if isinstance(given, str):
        return parse_curve(given)
    if not callable(getattr(given, "interp", None)):
        raise FlexIPError(
            f"the γ curve is a {type(given).__name__}; expected text such as 0:1, 0.5:0.8, 1:0.2, or ComfyUI's Curve "
            "Editor"
        )
    places = [index / (SAMPLES - 1) for index in range(SAMPLES)]
    points = tuple((place, float(given.interp(place))) for place in places)
    outside = next((gamma for _, gamma in points if not -1e-6 <= gamma <= 1 + 1e-6), None)
    if outside is not None:
        raise FlexIPError(f"the γ curve reaches {outside:g}; expected values from 0 to 1")
    return tuple((place, min(max(gamma, 0.0), 1.0)) for place, gamma in points)


def gamma_at(curve: Curve, position: float) -> float:
    """γ at a position of the sampling: linear between key points, level before the first and after the last."""
    after = bisect_right([p for p, _ in curve], position)
    if after == 0 or after == len(curve):
        return curve[max(after - 1, 0)][1]
    (p0, g0), (p1, g1) = curve[after - 1], curve[after]
    return g0 + (g1 - g0) * (position - p0) / (p1 - p0)


def parse_layers(text: str) -> dict[str, float]:
    """Read weights per block, "down=1, mid=0.5, up_blocks.1=0": later ones win, blocks not named have weight 1.

    A name is `down`, `mid` or `up`, or the beginning of a layer's name such as `up_blocks.1.attentions.2`.

    Returns:
        The weight of each of the 16 sites by name.

    Raises:
        FlexIPError: an unknown name, or a weight outside [0, 2].
    """
    weights = {site.name: 1.0 for site in SD15_SITES}
    for part in text.replace("\n", ",").split(","):
        if not part.strip():
            continue
        name, _, value = part.partition("=")
        chosen = [site.name for site in sites_named(name)]
        weights.update(dict.fromkeys(chosen, _number(value, 0, 2, f"the weight of {name.strip()}")))
    return weights
