"""A γ sweep as its user types it; standard library only, so that `run.py` checks it before anything is installed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .errors import FlexIPError

MOST = 64
"""The longest sweep (our choice): each γ is one picture of the batch."""


def parse_gammas(text: str) -> list[float]:
    """Read `first:last:step` (both ends included) or a list with commas or spaces, in brackets or not.

    Returns:
        1 to `MOST` numbers in [0, 1], in the order given, rounded to 6 decimals (0.1 + 0.2 is 0.3).

    Raises:
        FlexIPError: not numbers, outside [0, 1], a step that is zero or leads away, none, or more than `MOST`.
    """
    plain = without_brackets(text)
    parts = plain.split(":") if ":" in plain else plain.replace(",", " ").split()
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
    return _checked(values, f'"{text}"')


def read_gammas(given: Any) -> list[float]:
    """Return the γ values that are typed or connected: text (`parse_gammas`), a number, or a list of any length.

    Raises:
        FlexIPError: as `parse_gammas`; something else.
    """
    if isinstance(given, str):
        return parse_gammas(given)
    numbers = given if isinstance(given, Sequence) else [given]
    if not numbers or any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in numbers):
        raise FlexIPError(f"γ is {given!r}; expected a number, a list of numbers, or text such as 0:1:0.25")
    return _checked(numbers, repr(given))


def without_brackets(text: str) -> str:
    """Return a list that JSON wrote as a user types one: without the brackets around it."""
    text = text.strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def _checked(values: Sequence[float], given: str) -> list[float]:
    values = [round(float(value), 6) for value in values]
    if not all(0 <= value <= 1 for value in values):
        raise FlexIPError(f"γ is {given}; expected numbers from 0 (follow the prompt) to 1 (keep the subject)")
    return values
