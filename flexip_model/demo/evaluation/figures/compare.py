"""How the knobs of several adapters turn on one base, and which of them trades preservation for the prompt best.

Per subject: figures of its grid (six values, means over its 24 pictures by its own word) and of its fine sweep (21
pictures), both as `evaluation.summary.control` defines them, as they are and with the knob recalibrated on the other
subjects of the same adapter. An adapter's seeds are averaged subject by subject; differences between adapters are of
the same subjects, prompts and noises, with intervals over subjects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ....evaluation.statistics import interval
from ....evaluation.summary.control import Sweep, figures, hypervolume, recalibrations
from ..evaluate import FINE, KNOB
from .summary import Interval, Row, averaged, over_knob

GRID_FIGURES = ("spearman_preservation", "spearman_fidelity", "range_preservation", "range_fidelity", "hypervolume")
FINE_FIGURES = ("largest_jump", "deviation", "path_ratio", "triangle_deficit", "csm_preservation", "csm_fidelity")
COMPARED = {
    "hypervolume": "hypervolume of preservation (the judge's margin) and prompt fidelity",
    "hypervolume_shares": "hypervolume of shares: own reference first; background and style right",
    "hypervolume_other": "hypervolume of the margins of subject and word, where the two disagree",
    "largest_jump": "largest jump of the fine sweep",
    "largest_jump_recalibrated": "the same, knob recalibrated",
    "deviation": "deviation from an even knob",
    "deviation_recalibrated": "the same, knob recalibrated",
}
"""The figures of a comparison, in words."""


def seed_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Adapters by what stands before "-seedN"."""
    found: dict[str, list[str]] = {}
    for name in names:
        kind, mark, seed = name.rpartition("-seed")
        found.setdefault(kind if mark and seed.isdigit() else name, []).append(name)
    return found


def per_subject(rows: Sequence[Row]) -> list[dict[str, float]]:
    """One adapter's figures of every subject, NaN where one is not defined."""
    grid = [_sweep(row, KNOB, row["grid"], *(_along(row, m) for m in ("preservation", "fidelity"))) for row in rows]
    fine = [_sweep(row, FINE, row["fine"], row["fine"]["preservation"], row["fine"]["fidelity"]) for row in rows]
    places = recalibrations(fine)
    found = []
    for row, coarse, sweep, place in zip(rows, grid, fine, places, strict=True):
        of_grid, of_fine = figures(coarse), figures(sweep)
        fixed = figures(sweep, place) if place is not None else dict.fromkeys(of_fine, math.nan)
        found.append(
            {
                **{name: of_grid[name] for name in GRID_FIGURES},
                **{name: of_fine[name] for name in FINE_FIGURES},
                **{f"{name}_recalibrated": fixed[name] for name in FINE_FIGURES},
                "hypervolume_shares": hypervolume(_along(row, "first"), _along(row, "text")),
                "hypervolume_other": hypervolume(
                    _along(row, "preservation", "other"), _along(row, "following", "other")
                ),
            }
        )
    return found


def compare(rows_of: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Every kind's curves and figures, and their differences from the first kind's.

    Args:
        rows_of: an adapter's name to its rows; of all adapters the same subjects are kept.
    """
    count = min(len(rows) for rows in rows_of.values())
    kinds: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, np.ndarray]] = {}
    for kind, names in seed_groups(list(rows_of)).items():
        seeds = [list(rows_of[name])[:count] for name in names]
        values[kind] = _mean_over_seeds([per_subject(rows) for rows in seeds])
        kinds[kind] = {
            "seeds": len(names),
            **over_knob(averaged(seeds)),
            "figures": {name: _median(of) for name, of in values[kind].items() if not np.isnan(of).all()},
            "largest_jump_p95": _tail(values[kind]["largest_jump"]),
            "seeds_hypervolume": [
                round(float(np.nanmean([row["hypervolume"] for row in per_subject(rows)])), 4) for rows in seeds
            ],
        }
    first = next(iter(kinds))
    paired = {
        other: {
            name: interval((values[first][name] - values[other][name]).tolist())
            for name in COMPARED
            if not np.isnan(values[first][name] - values[other][name]).all()
        }
        for other in kinds
        if other != first
    }
    return {"subjects": count, "kinds": kinds, "first": first, "first_minus": paired}


def _sweep(row: Row, knob: Sequence[float], path: Mapping[str, Any], preservation: Any, fidelity: Any) -> Sweep:
    """A row's sweep; of its distances those that `control.figures` reads."""
    count = len(knob)
    distance = np.full((count, count), np.nan)
    for by, values in ((0, [0.0] * count), (1, path["steps"]), (2, path["skips"])):
        for start, value in enumerate(values):
            distance[start, start + by] = distance[start + by, start] = value
    distance[0, -1] = distance[-1, 0] = path["far"]
    return Sweep(row["code"], np.array(knob), distance, np.array(preservation), np.array(fidelity))


def _along(row: Row, measure: str, kind: str = "own") -> np.ndarray:
    return np.array([values[measure] for values in row[kind]])


def _mean_over_seeds(seeds: Sequence[Sequence[dict[str, float]]]) -> dict[str, np.ndarray]:
    """Figure to a value per subject: the mean of its seeds, of those in which it is defined."""
    found = {}
    for name in seeds[0][0]:
        of_all = np.array([[row[name] for row in rows] for rows in seeds])
        known = ~np.isnan(of_all)
        total = np.where(known, of_all, 0).sum(0)
        found[name] = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
    return found


def _median(values: np.ndarray) -> Interval:
    return interval(values.tolist(), np.median)


def _tail(values: np.ndarray) -> Interval | None:
    return None if np.isnan(values).all() else interval(values.tolist(), partial(np.percentile, q=95))
