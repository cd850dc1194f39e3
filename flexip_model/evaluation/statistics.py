"""Figures over subjects, each with an interval from resampling the subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
"""How often the subjects are drawn anew (our choice)."""


def interval(values: Sequence[float], figure: Callable[..., Any] = np.mean, seed: int = 0) -> dict[str, float]:
    """A figure of one value per subject, and its 95 % interval by bootstrap over subjects (percentiles).

    Values that are NaN (a subject of which the figure is not defined) are left out; `subjects` says how many remain.

    Args:
        figure: of an array along its `axis`, as numpy's own are.

    Raises:
        ValueError: no value remains.
    """
    from scipy.stats import bootstrap

    kept = np.asarray([v for v in values if not np.isnan(v)], float)
    if not len(kept):
        raise ValueError("no values")
    low = high = value = float(figure(kept, axis=0))
    if len(kept) > 1:  # one subject cannot be drawn otherwise, which scipy refuses
        rng = np.random.default_rng(seed)
        low, high = bootstrap(
            (kept,), figure, n_resamples=RESAMPLES, method="percentile", vectorized=True, rng=rng
        ).confidence_interval
    return {
        "value": round(value, 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "subjects": len(kept),
    }


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The rank correlation, from -1 to 1; NaN where one of the two never changes."""
    from scipy.stats import spearmanr

    if len(set(x)) < 2 or len(set(y)) < 2:
        return float("nan")
    return float(spearmanr(x, y).statistic)


def largest_step(steps: Sequence[float]) -> float:
    """The largest of a sweep's steps over their average: 1 for an even dial."""
    values = np.asarray(steps, float)
    return float(values.max() / values.mean()) if values.mean() > 0 else float("nan")
