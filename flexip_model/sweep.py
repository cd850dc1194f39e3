"""A γ sweep as its user types it; standard library only, so that `run.py` checks it before anything is installed."""

from __future__ import annotations

import math

from .errors import FlexIPError

MOST = 64
"""The longest sweep (our choice): each γ is one picture of the batch."""


def parse_gammas(text: str) -> list[float]:
    """Read `first:last:step` (both ends included) or a list with commas or spaces.

    Returns:
        1 to `MOST` numbers in [0, 1], in the order given, rounded to 6 decimals (0.1 + 0.2 is 0.3).

    Raises:
        FlexIPError: not numbers, outside [0, 1], a step that is zero or leads away, none, or more than `MOST`.
    """
    parts = text.split(":") if ":" in text else text.replace(",", " ").split()
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)) or (":" in text and len(values) != 3):
        raise FlexIPError(f'γ is "{text}"; expected first:last:step such as 0:1:0.25, or a list such as 0, 0.3, 1')
    if ":" in text:
        first, last, step = values
        if step == 0 or (last - first) * step < 0:
            raise FlexIPError(f'γ is "{text}"; a step of {step:g} never leads from {first:g} to {last:g}')
        count = math.floor((last - first) / step + 1e-9) + 1
        values = [first + index * step for index in range(min(count, MOST + 1))]
    if len(values) > MOST:
        raise FlexIPError(f'γ is "{text}", more than {MOST} values; expected fewer, for example 0:1:0.1')
    values = [round(value, 6) for value in values]
    if min(values) < 0 or max(values) > 1:
        raise FlexIPError(f'γ is "{text}"; expected numbers from 0 (follow the prompt) to 1 (keep the subject)')
    return values
