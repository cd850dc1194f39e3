"""Scores to figures: a value per subject, and their mean with its interval, for each method at each setting."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from ..pictures.beside import BESIDE
from ..scoring.store import Run
from ..statistics import interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Figure:
    """One cell of a table.

    Attributes:
        value, low, high: the mean over subjects and its 95 % interval (bootstrap over subjects); equal for one subject.
        subjects: how many have a value.
        pictures: how many scores are in it.
        left_out: how many pictures have no score, each with a note in the run.
        missed: how many count 0 because their subject was not found.
    """

    value: float
    low: float
    high: float
    subjects: int
    pictures: int
    left_out: int
    missed: int


@dataclass(frozen=True)
class Comparison:
    """A paired test between two columns, over subjects.

    Attributes:
        difference: the mean over subjects of the first minus the second.
        p: of Wilcoxon's signed-rank test, two-sided.
        corrected: p after Holm's correction over all comparisons of the metric.
    """

    metric: str
    first: str
    second: str
    difference: float
    subjects: int
    p: float
    corrected: float


def frame(run: Run) -> pd.DataFrame:
    """A line per score, with `label`: the method, and those of its knobs that take several values; methods in the run's
    order, settings in that of their values."""
    import pandas

    methods = {method["name"]: place for place, method in enumerate(run.record["methods"])}
    lines = sorted(run.values(), key=lambda line: (methods[line["method"]], *line["knobs"].values()))
    table = pandas.DataFrame(
        {
            "method": [line["method"] for line in lines],
            "setting": [" ".join(f"{name}={value:g}" for name, value in line["knobs"].items()) for line in lines],
            "subject": [line["subject"] for line in lines],
            "prompt": [line["prompt"] for line in lines],
            "picture": [line["picture"] for line in lines],
            "metric": [line["metric"] for line in lines],
            "value": [line["value"] for line in lines],
            "note": [line["note"] for line in lines],
        }
    )
    turned: dict[str, dict[str, set[float]]] = {}
    for line in lines:
        for name, value in line["knobs"].items():
            turned.setdefault(line["method"], {}).setdefault(name, set()).add(value)
    table["label"] = [
        " ".join([m, *(f"{k}={v:g}" for k, v in line["knobs"].items() if len(turned[m][k]) > 1)])
        for line in lines
        for m in [line["method"]]
    ]
    return table


def by_subject(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Subjects × labels: the mean over prompts and seeds of the scores that there are."""
    scores = table[table["metric"] == metric].dropna(subset="value")
    return scores.pivot_table(index="subject", columns="label", values="value", aggfunc="mean")


def figures(table: pd.DataFrame) -> dict[str, dict[str, Figure]]:
    """Label to metric to figure, in the order of the run; metrics without any score are not there."""
    found: dict[str, dict[str, Figure]] = {label: {} for label in table["label"].unique()}
    for (label, metric), scores in table.groupby(["label", "metric"], sort=False):
        kept = scores.dropna(subset="value")
        if not len(kept):
            continue
        mean = interval(kept.groupby("subject")["value"].mean().tolist())
        found[label][metric] = Figure(
            value=float(kept.groupby("subject")["value"].mean().mean()),
            low=mean["low"],
            high=mean["high"],
            subjects=int(mean["subjects"]),
            pictures=len(kept),
            left_out=len(scores) - len(kept),
            missed=int((kept["note"] != "").sum()),
        )
    return found


def compare_methods(table: pd.DataFrame) -> list[Comparison]:
    """Every two columns of different methods, by each metric; the sets that stand beside are not compared."""
    import numpy as np
    from scipy.stats import wilcoxon

    method_of = table.drop_duplicates("label").set_index("label")["method"]
    found = []
    for metric in table["metric"].unique():
        means = by_subject(table, metric)
        pairs = [
            (a, b)
            for a, b in combinations([label for label in method_of.index if label in means], 2)
            if method_of[a] != method_of[b] and not {method_of[a], method_of[b]} & set(BESIDE)
        ]
        tests = []
        for a, b in pairs:
            both = means[[a, b]].dropna()
            difference = (both[a] - both[b]).to_numpy()
            if len(both):
                p = float(wilcoxon(difference).pvalue) if np.any(difference != 0) else 1.0
                tests.append((a, b, float(difference.mean()), len(both), p))
        corrected = holm([test[-1] for test in tests])
        found += [Comparison(metric, *test, fixed) for test, fixed in zip(tests, corrected, strict=True)]
    return found


def holm(values: list[float]) -> list[float]:
    """Holm's step-down correction of p values, in their order; scipy has only those for the false discovery rate."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    corrected, highest = [0.0] * len(values), 0.0
    for step, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - step) * values[place]))
        corrected[place] = highest
    return corrected
