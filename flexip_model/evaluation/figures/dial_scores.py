"""What a turned knob's pictures score: preservation, text fidelity, and how far each turn moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..metrics.definitions import DEFINITIONS
from ..metrics.measure import Item, Measure
from ..metrics.weights import tell_lacking
from ..scoring.sweeps import distances
from ..summary.control import Sweep, figures

if TYPE_CHECKING:
    from PIL.Image import Image

PRESERVATION = ("dino-i", "clip-i")
"""The first of these that can be measured, of the whole picture."""
FIDELITY = "clip-t"


@dataclass(frozen=True)
class Scores:
    """One method's sweeps, one per seed.

    Attributes:
        sweeps: with scores that are NaN where nothing measures them.
    """

    sweeps: tuple[Sweep, ...]

    @property
    def preservation(self) -> np.ndarray:
        """The mean over seeds, (K + 1)."""
        return _mean([sweep.preservation for sweep in self.sweeps])

    @property
    def fidelity(self) -> np.ndarray:
        """The mean over seeds, (K + 1)."""
        return _mean([sweep.fidelity for sweep in self.sweeps])

    @property
    def speed(self) -> np.ndarray:
        """How fast each turn of the knob moves the picture over the sweep's mean speed, mean over seeds, (K): 1 is
        even, NaN where nothing moves."""
        found = []
        for sweep in self.sweeps:
            widths, steps = np.diff(sweep.knob), sweep.steps
            total = steps.sum()
            found.append(steps / widths * np.ptp(sweep.knob) / total if total > 0 else np.full(len(steps), math.nan))
        return _mean(found)

    def control(self) -> dict[str, float]:
        """The mean over seeds of each figure of `summary.control`, without those that are not defined."""
        rows = [figures(sweep) for sweep in self.sweeps]
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return {name: round(value, 4) for name, value in means.items() if not math.isnan(value)}


def score(
    measure: Measure,
    pictures: Sequence[Sequence[Image]],
    reference: Image,
    prompt: str,
    values: Sequence[float],
) -> Scores:
    """Score pictures, a row per seed and a column per value."""
    metric, dino = preservation_metric(measure), measure.dino if "dino-i" in measure.metrics else None
    sweeps = []
    for row in pictures:
        items = [Item(picture, reference, "the reference", prompt, "") for picture in row]
        found = distances(row, dino)

        def along(name: str | None, items: Sequence[Item] = items) -> np.ndarray:
            if name is None or name not in measure.metrics:
                return np.full(len(items), math.nan)
            return np.array([one.value for one in measure(name, items)], float)

        distance = np.array(found["dino" if dino else "pixels"], float)
        sweeps.append(Sweep("", np.array(values, float), distance, along(metric), along(FIDELITY)))
    return Scores(tuple(sweeps))


def preservation_metric(measure: Measure) -> str | None:
    """The first of `PRESERVATION` whose weights are there."""
    return next((metric for metric in PRESERVATION if metric in measure.metrics), None)


def tell_measures(measure: Measure) -> list[str]:
    """Sentences below the figure: what measured, what is no independent judge, and what is lacking."""
    notes = []
    for metric in (preservation_metric(measure), FIDELITY):
        if metric is not None and metric in measure.metrics:
            (entry,) = measure.identity(metric).values()
            own = (
                " The adapter was trained with this encoder: it is no independent judge."
                if "pack's" in entry["name"]
                else ""
            )
            notes.append(f"{DEFINITIONS[metric].title} by {entry['name']} ({entry['hash']}).{own}")
    return notes + tell_lacking({metric: said for metric, said in measure.lacking.items() if metric == FIDELITY})


def weights_of(measure: Measure) -> dict[str, Any]:
    """The weights of what was measured, for the record."""
    return {metric: measure.identity(metric) for metric in measure.metrics}


def _mean(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(rows, 0), float)
