"""The γ at which a score reaches a target, by bisection: no model here, only numbers.

Bisection needs a score that moves from one side of the target to the other between γ 0 and γ 1, in whichever direction:
likeness to the reference rises with γ, likeness to the prompt falls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

NARROW = 0.002
"""A bracket of γ that is not halved any more (our choice; the γ slider moves by 0.01)."""
NOISE = 0.001
"""A step back by less than this is no change of direction (our choice; scores are shown to three or four digits)."""


class Tried(NamedTuple):
    """A γ and its score."""

    gamma: float
    score: float


class Found(NamedTuple):
    """What a search came to.

    Attributes:
        best: the γ with the score nearest to the target.
        tried: all of them, in their order.
        warnings: a sentence for each thing that is not as asked; empty where the target was reached without any.
    """

    best: Tried
    tried: list[Tried]
    warnings: list[str]


def find_gamma(score_at: Callable[[float], float], target: float, tolerance: float, most: int, name: str) -> Found:
    """Try γ 0 and γ 1, then halve the bracket until the score is within the tolerance.

    Args:
        score_at: asked at most `most` times, and never twice for one γ.
        most: at least 2.
        name: of the score, for the sentences.
    """
    tried: list[Tried] = []

    def is_there(gamma: float) -> bool:
        tried.append(Tried(gamma, score_at(gamma)))
        return abs(tried[-1].score - target) <= tolerance

    if is_there(0.0) or is_there(1.0):
        return _found(tried, target, name, "")
    low, high = tried
    if (low.score < target) == (high.score < target):
        nearer = min(tried, key=lambda one: abs(one.score - target))
        return _found(
            tried,
            target,
            name,
            f"the target {target:g} is out of reach: {name} is {low.score:.4f} at γ 0 and {high.score:.4f} at γ 1; the "
            f"nearer end, γ {nearer.gamma:g}, is given out",
        )
    while high.gamma - low.gamma > NARROW:
        if len(tried) >= most:
            return _found(
                tried, target, name, f"{most} samplings did not come within {tolerance:g}; allow more of them"
            )
        if is_there((low.gamma + high.gamma) / 2):
            return _found(tried, target, name, "")
        if (tried[-1].score < target) == (low.score < target):
            low = tried[-1]
        else:
            high = tried[-1]
    jump = (
        f"{name} jumps over the target: it is {low.score:.4f} at γ {low.gamma:g} and {high.score:.4f} at γ "
        f"{high.gamma:g}; widen the tolerance"
    )
    return _found(tried, target, name, jump)


def _found(tried: list[Tried], target: float, name: str, problem: str) -> Found:
    warnings = [problem] if problem else []
    if turns_back(tried):
        warnings.append(f"{name} does not move in one direction over γ, so other γ may reach the target too")
    return Found(min(tried, key=lambda one: abs(one.score - target)), tried, warnings)


def turns_back(tried: list[Tried]) -> bool:
    """Whether the score both rises and falls over γ, by more than `NOISE`."""
    steps = [b.score - a.score for a, b in itertools.pairwise(sorted(tried))]
    return max(steps, default=0) > NOISE and min(steps, default=0) < -NOISE


def write_log(found: Found, name: str, target: float, tolerance: float) -> str:
    """What was tried, as plain text."""
    lines = [f"{name} {target:g} was asked for, within {tolerance:g}."]
    for one in found.tried:
        mark = "  <- given out" if one is found.best else ""
        lines.append(f"γ {one.gamma:<9.6g} {name} {one.score:.4f}{mark}")
    lines += [f"Warning: {warning}." for warning in found.warnings]
    if abs(found.best.score - target) <= tolerance:
        lines.append(f"Reached after {len(found.tried)} sampling{'s' * (len(found.tried) > 1)}.")
    return "\n".join(lines)
