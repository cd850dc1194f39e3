"""How a knob turns: figures of each sweep, as it is and after a monotone recalibration of the knob.

A sweep has K steps between K + 1 pictures at knob values x_0 < … < x_K; D is the distance between two of its pictures,
d_k = D(k−1, k). None of these figures says by itself that a knob is good: one that changes nothing is smooth too, so
ranges stand beside them and a sweep without any change has no figures of evenness.

Recalibrated, the knob's place is u(x): the mean, over the sweeps of all other subjects, of the share of the path that
lies before x. What remains uneven then is not the knob's parametrization.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..statistics import interval, spearman

DEFINITIONS = {
    "spearman_preservation": "rank correlation of the knob and the preservation score; a recalibration leaves it",
    "spearman_fidelity": "rank correlation of the knob and CLIP-T; a recalibration leaves it",
    "range_preservation": "highest minus lowest preservation score (FreeSliders, arXiv 2511.00103: conceptual range)",
    "range_fidelity": "highest minus lowest CLIP-T",
    "largest_jump": "K · max d / Σ d, for unequal steps of the knob the fastest step over the mean speed; 1 is even",
    "deviation": "largest distance of the cumulative share of the path from the diagonal; 0 is even",
    "path_ratio": "Σ d / D(0, K); 1 is a path without detours; a recalibration leaves it",
    "triangle_deficit": "mean over inner pictures of (d_k + d_k+1 − D(k−1, k+1)) / D(k−1, k+1), the smoothness of "
    "Kontinuous Kontext (arXiv 2510.08532), which measures D by DreamSim; lower is smoother; a recalibration leaves it",
    "csm_preservation": "standard deviation of the preservation score's steps over equal steps of the knob (conceptual "
    "smoothness of FreeSliders, arXiv 2511.00103); lower is smoother",
    "csm_fidelity": "the same of CLIP-T",
    "chi_preservation": "χ² over its degrees of freedom of the preservation scores, brought to 0 to 1, in as many "
    "equal bins as pictures (continuity of SliderEdit, arXiv 2511.09715, as its authors' code computes it of scores of "
    "picture and text); 0 is even",
    "chi_fidelity": "the same of CLIP-T",
    "hypervolume": "area of (preservation, CLIP-T) that the sweep's pictures dominate, above the point (0, 0)",
}
"""What each figure is. SliderEdit's is that of its published evaluation (github.com/ArmanZarei/SliderEdit)."""
TAIL = "largest_jump_p95"


@dataclass(frozen=True)
class Sweep:
    """One sweep.

    Attributes:
        knob: (K + 1) values, rising.
        distance: (K + 1, K + 1).
        preservation, fidelity: (K + 1) scores, NaN where there is none.
    """

    subject: str
    knob: np.ndarray
    distance: np.ndarray
    preservation: np.ndarray
    fidelity: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """d, (K)."""
        return np.diagonal(self.distance, 1)

    def shares(self) -> np.ndarray:
        """The share of the path before each picture, (K + 1), from 0 to 1; NaN where nothing changes."""
        total = self.steps.sum()
        return np.concatenate([[0], np.cumsum(self.steps)]) / (total if total > 0 else np.nan)


def figures(sweep: Sweep, place: np.ndarray | None = None) -> dict[str, float]:
    """The figures of `DEFINITIONS`, NaN where one is not defined.

    Args:
        place: (K + 1), the recalibrated knob; None takes the knob as it is.
    """
    x = sweep.knob if place is None else place
    steps, far = sweep.steps, float(sweep.distance[0, -1])
    widths, even = np.diff(x), (x - x[0]) / (x[-1] - x[0])
    moved = bool(steps.sum() > 0 and (widths > 0).all())
    skip = np.diagonal(sweep.distance, 2)
    found = {
        "spearman_preservation": _spearman(sweep.knob, sweep.preservation),
        "spearman_fidelity": _spearman(sweep.knob, sweep.fidelity),
        "range_preservation": float(np.ptp(sweep.preservation)),
        "range_fidelity": float(np.ptp(sweep.fidelity)),
        "largest_jump": float((steps / widths).max() * (x[-1] - x[0]) / steps.sum()) if moved else math.nan,
        "deviation": float(np.abs(sweep.shares() - even).max()) if moved else math.nan,
        "path_ratio": float(steps.sum() / far) if far > 0 else math.nan,
        "triangle_deficit": float(((steps[:-1] + steps[1:] - skip) / skip).mean()) if (skip > 0).all() else math.nan,
        "csm_preservation": _unevenness(even, sweep.preservation),
        "csm_fidelity": _unevenness(even, sweep.fidelity),
        "chi_preservation": _clumping(
            _resampled(even, sweep.preservation) if place is not None else sweep.preservation
        ),
        "chi_fidelity": _clumping(_resampled(even, sweep.fidelity) if place is not None else sweep.fidelity),
        "hypervolume": hypervolume(sweep.preservation, sweep.fidelity),
    }
    return {name: found[name] for name in DEFINITIONS}


def hypervolume(first: np.ndarray, second: np.ndarray) -> float:
    """The area between (0, 0) and the points (first, second) that is not above all of them; NaN with a NaN in it."""
    if np.isnan(first).any() or np.isnan(second).any():
        return math.nan
    area, reached = 0.0, 0.0
    for a, b in sorted(zip(first.clip(0), second.clip(0), strict=True), reverse=True):
        area += float(a * max(b - reached, 0))
        reached = max(reached, float(b))
    return area


def recalibrations(sweeps: Sequence[Sweep]) -> list[np.ndarray | None]:
    """For each sweep the recalibrated knob, made of the other subjects' sweeps; None where there are none, or where
    none of them changes in some step. All sweeps are of one knob's values."""
    shares = np.array([sweep.shares() for sweep in sweeps])
    subjects = np.array([sweep.subject for sweep in sweeps])
    found: list[np.ndarray | None] = []
    for sweep in sweeps:
        others = shares[(subjects != sweep.subject) & ~np.isnan(shares).any(1)]
        place = others.mean(0) if len(others) else None
        found.append(place if place is not None and (np.diff(place) > 0).all() else None)
    return found


def summarize(sweeps: Sequence[Sweep]) -> dict[str, dict[str, dict[str, float]]]:
    """`as it is` and `recalibrated` to figure to value, interval and number of subjects; medians over subjects, and the
    95th percentile of the largest jump. Sweeps whose knob has other values than most are left out."""
    grid = max({tuple(sweep.knob) for sweep in sweeps}, key=lambda g: sum(tuple(s.knob) == g for s in sweeps))
    kept = [sweep for sweep in sweeps if tuple(sweep.knob) == grid]
    plain = [figures(sweep) for sweep in kept]
    fixed = [figures(s, place) for s, place in zip(kept, recalibrations(kept), strict=True) if place is not None]
    names = [s.subject for s, place in zip(kept, recalibrations(kept), strict=True) if place is not None]
    return {
        "as it is": _over_subjects([sweep.subject for sweep in kept], plain),
        "recalibrated": _over_subjects(names, fixed),
    }


def _over_subjects(subjects: Sequence[str], rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    found = {}
    for name in DEFINITIONS:
        values = []
        for subject in dict.fromkeys(subjects):
            own = [row[name] for row, whose in zip(rows, subjects, strict=True) if whose == subject]
            kept = [value for value in own if not math.isnan(value)]
            values.append(float(np.mean(kept)) if kept else math.nan)
        if any(not math.isnan(value) for value in values):
            found[name] = interval(values, np.median)
            if name == "largest_jump":
                found[TAIL] = interval(values, partial(np.percentile, q=95))
    return found


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return math.nan if np.isnan(y).any() else spearman(x.tolist(), y.tolist())


def _unevenness(place: np.ndarray, scores: np.ndarray) -> float:
    """Standard deviation of a score's steps over as many equal steps of the knob."""
    return float(np.diff(_resampled(place, scores)).std())


def _resampled(place: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores at as many equal steps of the knob, whose places are given from 0 to 1; NaN where that is not defined."""
    if np.isnan(scores).any() or not (np.diff(place) > 0).all():
        return np.full(len(scores), math.nan)
    return np.interp(np.linspace(0, 1, len(place)), place, scores)


def _clumping(scores: np.ndarray) -> float:
    """χ² of equal bins over its degrees of freedom: how far the scores are from being spread evenly over their range;
    NaN where they do not change."""
    from scipy.stats import chisquare

    if np.isnan(scores).any() or np.ptp(scores) == 0:
        return math.nan
    counts, _ = np.histogram((scores - scores.min()) / np.ptp(scores), len(scores), (0, 1))
    return float(chisquare(counts).statistic / (len(scores) - 1))
