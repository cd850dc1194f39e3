"""From the rows of an adapter to figures with intervals over subjects, and the comparison with what is on record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....evaluation.statistics import interval
from ..evaluate import KNOB
from ..judges import OTHER, OWN

TOLERANCE = 0.05
"""How far a measure's mean over the checked subjects may be from the one on record: other processors round other."""
BASELINES = ("no_adapter", "copy", "through_vae")

Row = dict[str, Any]
Interval = dict[str, float]
_SETS = {"own": OWN, "other": OTHER}


def over_knob(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Interval]]]:
    """Set of prompts to value of the knob to measure to mean and interval."""
    return {
        kind: {
            f"{value:g}": {m: interval([row[kind][place][m] for row in rows]) for m in measures}
            for place, value in enumerate(KNOB)
        }
        for kind, measures in _SETS.items()
    }


def baselines(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Interval]]]:
    """Baseline to set of prompts to measure to mean and interval."""
    return {
        name: {kind: {m: interval([row[name][kind][m] for row in rows]) for m in _SETS[kind]} for kind in _SETS}
        for name in BASELINES
    }


def best_value(own: dict[str, dict[str, Interval]]) -> float:
    """The value inside the knob's range at which subject, background and style hold at once most often."""
    inside = [f"{value:g}" for value in KNOB if 0 < value < 1]
    return float(max(inside, key=lambda value: own[value]["both"]["value"]))


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """An adapter's figures."""
    found = over_knob(rows)
    steps = np.mean([row["fine"]["steps"] for row in rows], 0)
    return {
        "subjects": len(rows),
        **found,
        "best": best_value(found["own"]),
        "mean_pixel_steps": np.round(steps, 5).tolist(),
    }


def averaged(seeds: Sequence[Sequence[Row]]) -> list[Row]:
    """One row per subject, the mean of several adapters' rows; subjects that all of them have."""
    found = []
    for of_subject in zip(*seeds, strict=False):
        first = of_subject[0]
        row: Row = {"subject": first["subject"], "fine": {}}
        for kind, measures in _SETS.items():
            row[kind] = [
                {m: float(np.mean([r[kind][place][m] for r in of_subject])) for m in measures}
                for place in range(len(KNOB))
            ]
        row["fine"]["steps"] = np.mean([r["fine"]["steps"] for r in of_subject], 0).tolist()
        found.append(row)
    return found


def differences(rows: Sequence[Row], recorded: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Measure at a value of the knob to (now, on record), as means over the subjects that are in `rows`."""
    known = {row["code"]: row for row in recorded}
    kept = [(row, known[row["code"]]) for row in rows if row["code"] in known]
    found = {}
    for kind, measures in _SETS.items():
        for place, value in enumerate(KNOB):
            for measure in measures:
                now, before = (float(np.mean([pair[side][kind][place][measure] for pair in kept])) for side in (0, 1))
                found[f"{measure} ({kind}) at γ = {value:g}"] = (round(now, 4), round(before, 4))
    return found
