"""From the rows of `evaluate` to figures with intervals, curves, and the comparison with what is on record."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluation.statistics import interval, largest_step, spearman
from .evaluate import FINE, GAMMAS
from .judges import JUDGED_STYLES

MEASURES = ("first", "first_raw", "preservation", "background", "style", "text", "fidelity", "both")
TOLERANCE = 0.05
"""How far a measure's mean over the checked subjects may be from the one on record: other processors round other."""

Row = dict[str, Any]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The goals' figures, every one over subjects."""
    table = {
        f"{gamma:g}": {m: interval([row["gammas"][i][m] for row in rows]) for m in MEASURES}
        for i, gamma in enumerate(GAMMAS)
    }
    baselines = {
        name: {m: interval([row[name][m] for row in rows]) for m in MEASURES}
        for name in ("no_adapter", "copy", "through_vae")
    }
    both = {gamma: table[gamma]["both"]["value"] for gamma in table if 0 < float(gamma) < 1}
    best = max(both, key=lambda gamma: both[gamma])

    def ranks(measure: str) -> list[float]:
        return [spearman(GAMMAS, [g[measure] for g in row["gammas"]]) for row in rows]

    steps = [largest_step(row["pixel_steps"]) for row in rows]
    return {
        "subjects": len(rows),
        "gammas": table,
        "baselines": baselines,
        "best_gamma": float(best),
        "spearman_preservation": interval(ranks("preservation"), np.median),
        "spearman_fidelity": interval(ranks("fidelity"), np.median),
        "fidelity_by_style": {
            style: {
                "gammas": {
                    f"{gamma:g}": interval([row["gammas"][i][f"fidelity_{style}"] for row in rows])
                    for i, gamma in enumerate(GAMMAS)
                },
                "spearman": interval(ranks(f"fidelity_{style}"), np.median),
            }
            for style in JUDGED_STYLES
        },
        "largest_step_over_mean": {
            "median": interval(steps, np.median),
            "p95": interval(steps, partial(np.percentile, q=95)),
        },
        "mean_pixel_steps": np.round(np.mean([row["pixel_steps"] for row in rows], 0), 5).tolist(),
    }


def differences(rows: Sequence[Row], recorded: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Measure at γ to (now, on record), as means over the subjects that are in `rows`."""
    known = {row["code"]: row for row in recorded}
    kept = [(row, known[row["code"]]) for row in rows if row["code"] in known]
    found = {}
    for place, gamma in enumerate(GAMMAS):
        for measure in MEASURES:
            now, before = (float(np.mean([pair[side]["gammas"][place][measure] for pair in kept])) for side in (0, 1))
            found[f"{measure} at γ = {gamma:g}"] = (round(now, 4), round(before, 4))
    return found


def draw_curves(figures: dict[str, Any], path: Path) -> None:
    """Preservation and text fidelity over γ with their intervals, the trivial baselines, and the size of each step."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    panels = (
        (
            "Keeps the subject",
            (("first", "reference is the judge's first of 51"), ("first_raw", "the same, by raw pixels")),
        ),
        (
            "Follows the prompt",
            (
                ("background", "background as asked"),
                ("style", "style as asked"),
                ("both", "all of it, and the subject kept"),
            ),
        ),
    )
    for axis, (title, lines) in zip(axes, panels, strict=False):
        for (measure, label), color in zip(lines, ("#1f5fa8", "#d07a1a", "#3a8f4d"), strict=False):
            values = [figures["gammas"][f"{gamma:g}"][measure] for gamma in GAMMAS]
            axis.plot(GAMMAS, [v["value"] for v in values], "o-", color=color, label=label)
            axis.fill_between(GAMMAS, [v["low"] for v in values], [v["high"] for v in values], color=color, alpha=0.2)
            axis.axhline(figures["baselines"]["no_adapter"][measure]["value"], color=color, ls=":", lw=1)
        axis.plot([], [], color="#555", ls=":", lw=1, label="no adapter")
        axis.set(title=title, xlabel="γ", ylabel="share of pictures", ylim=(-0.03, 1.03))
        axis.legend(fontsize=8)
    steps = np.array(figures["mean_pixel_steps"])
    axes[2].bar([(a + b) / 2 for a, b in pairwise(FINE)], 100 * steps, 0.045, color="#777")
    axes[2].axhline(100 * steps.mean(), color="#1f5fa8", lw=1, label="average")
    axes[2].set(title="What a step of 0.05 changes", xlabel="γ", ylabel="mean change of a pixel, %")
    axes[2].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
