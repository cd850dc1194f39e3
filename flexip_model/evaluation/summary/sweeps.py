"""A run's sweeps, with the scores of their pictures beside their distances."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..scoring.store import Run
from .control import Sweep

PRESERVATION = ("dino-i-subject", "clip-i-subject", "dino-i", "clip-i")
"""The first of these that a run has is its preservation."""
FIDELITY = "clip-t"
DISTANCES = ("dino", "pixels")


class Sweeps(NamedTuple):
    """Sweeps by method, what they were measured by, and a sentence for each that was left out."""

    of_method: dict[str, list[Sweep]]
    preservation: str | None
    distance: str | None
    left_out: list[str]


def read_sweeps(run: Run) -> Sweeps:
    """Distances are of DINO where it was at hand, otherwise of pixels."""
    scores = {
        (line["method"], line["picture"], line["metric"]): math.nan if line["score"] is None else line["score"]
        for line in run.scores
    }
    there = {line["metric"] for line in run.scores}
    preservation = next((metric for metric in PRESERVATION if metric in there), None)
    distance = next((d for d in DISTANCES if any(d in sweep["distances"] for sweep in run.sweeps)), None)
    found: dict[str, list[Sweep]] = {}
    left_out = []
    for entry in run.sweeps:
        if distance not in entry["distances"]:
            why = entry["note"] or f"it has no distances by {distance}; score the run again"
            left_out.append(f"{entry['method']}, {entry['subject']}, {entry['prompt']!r}: {why}")
            continue

        def along(metric: str | None, entry=entry) -> np.ndarray:
            return np.array([scores.get((entry["method"], p, metric), math.nan) for p in entry["pictures"]], float)

        found.setdefault(entry["method"], []).append(
            Sweep(
                entry["subject"],
                np.array(entry["values"], float),
                np.array(entry["distances"][str(distance)], float),
                along(preservation),
                along(FIDELITY),
            )
        )
    return Sweeps(found, preservation, distance, left_out)
