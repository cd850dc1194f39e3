"""`evaluate compare`: one method's columns in two runs."""

from __future__ import annotations

from ...common.errors import FlexIPError
from ..metrics.definitions import DEFINITIONS
from ..scoring.store import Run
from ..summary.table import by_subject, frame, holm


def compare(first: Run, second: Run) -> str:
    """Markdown: for each column and metric that both runs have the mean difference over common subjects, with a paired
    test (Wilcoxon) corrected over all rows (Holm). Metrics whose weights differ are named and not compared.

    Raises:
        FlexIPError: the runs have no column in common.
    """
    from scipy.stats import wilcoxon

    tables = frame(first), frame(second)
    labels = [label for label in tables[0]["label"].unique() if label in set(tables[1]["label"])]
    if not labels:
        raise FlexIPError(f"{first.folder} and {second.folder} have no method in common; give them equal names")
    rows, notes = [], []
    for metric, definition in DEFINITIONS.items():
        weights = [_hashes(run, metric) for run in (first, second)]
        if not all(weights):
            continue
        if weights[0] != weights[1]:
            notes.append(f"{definition.title} is not compared: its weights differ ({weights[0]}, {weights[1]}).")
            continue
        means = [by_subject(table, metric) for table in tables]
        for label in labels:
            if all(label in mean for mean in means):
                a, b = means[0][label].dropna(), means[1][label].dropna()
                common = a.index.intersection(b.index)
                difference = (b[common] - a[common]).to_numpy()
                if len(common):
                    p = float(wilcoxon(difference).pvalue) if (difference != 0).any() else 1.0
                    rows.append((label, definition.title, a[common].mean(), b[common].mean(), len(common), p))
    corrected = holm([row[-1] for row in rows])
    lines = [
        f"First: {first.folder}; second: {second.folder}. Means over the subjects that both have.",
        "",
        "| Method | Metric | first | second | second − first | subjects | p after Holm |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {label} | {metric} | {a:.4f} | {b:.4f} | {b - a:+.4f} | {count} | {p:.3g} |"
            for (label, metric, a, b, count, _), p in zip(rows, corrected, strict=True)
        ),
        *(["", *notes] if notes else []),
    ]
    return "\n".join(lines)


def _hashes(run: Run, metric: str) -> dict[str, str]:
    weights = run.record["metrics"].get(metric, {"weights": {}})["weights"]
    return {role: entry["hash"] for role, entry in weights.items()}
