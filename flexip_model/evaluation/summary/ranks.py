"""The mean rank over metrics (mRank), and the paper's Tables 1 and 2 as they are printed."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TABLES = Path(__file__).parent / "paper"
RANKED = ("clip-t", "clip-i", "dino-i", "clip-iqa", "aesthetic")
"""The metrics that the paper's mRank is over: with these, and no others, its numbers come out."""
STUDY = ("flex", "id-pres")
JUDGED = ("match", "detail", "semantic")


@dataclass(frozen=True)
class Published:
    """A row of the paper's tables.

    Attributes:
        values: metric to number; what is not printed is not there.
        behind: metrics in which the method ranks behind those with the same printed number. ELITE's is `aesthetic`:
            it and MoMA have 5.437, and their printed mean ranks (6.2 and 5.8) come out with ranks 8 and 7, not with
            7.5 for both; their numbers before rounding probably differed.
    """

    method: str
    values: dict[str, float]
    mean_rank: float | None = None
    behind: frozenset[str] = field(default=frozenset())


def read_tables() -> dict[str, Published]:
    """The paper's methods in the order of its Table 1, with what Table 2 has of them."""
    second = {row["method"]: row for row in _rows("table2.csv")}
    found = {}
    for row in _rows("table1.csv"):
        values = {name: float(row[name]) for name in (*RANKED, *STUDY) if row[name]}
        values |= {name: float(second[row["method"]][name]) for name in JUDGED if row["method"] in second}
        found[row["method"]] = Published(
            row["method"],
            values,
            float(row["mrank"]),
            frozenset(row["behind"].split()) if row["behind"] else frozenset(),
        )
    return found


def mean_ranks(
    values: Mapping[str, Mapping[str, float]],
    metrics: Collection[str] = RANKED,
    behind: Mapping[str, Collection[str]] | None = None,
) -> dict[str, float]:
    """The mean over metrics of each method's rank, 1 for the highest value; equals share the mean of their ranks.

    A metric that some method has no value of (none, or NaN) is left out for all, so that ranks stay comparable.

    Args:
        values: method to metric to value.
        behind: method to the metrics in which it ranks behind its equals.

    Returns:
        Method to mean rank; empty where no metric is left.
    """
    from scipy.stats import rankdata

    kept = ranked_metrics(values, metrics)
    methods = list(values)
    totals = dict.fromkeys(methods, 0.0)
    for metric in kept:
        keys = [(-values[m][metric], metric in (behind or {}).get(m, ())) for m in methods]
        order = {key: place for place, key in enumerate(sorted(set(keys)))}
        for method, rank in zip(methods, rankdata([order[key] for key in keys], "average"), strict=True):
            totals[method] += float(rank)
    return {method: totals[method] / len(kept) for method in methods} if kept else {}


def ranked_metrics(values: Mapping[str, Mapping[str, float]], metrics: Collection[str] = RANKED) -> list[str]:
    """The metrics that every method has a value of."""
    return [m for m in metrics if values and all(math.isfinite(row.get(m, math.nan)) for row in values.values())]


def _rows(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
