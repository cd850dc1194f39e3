"""What stands in a report, from a run's folder; the page and the Markdown show the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metrics.definitions import DEFINITIONS
from ..metrics.measure import MISSED
from ..metrics.weights import tell_lacking
from ..pictures.beside import BESIDE
from ..scoring.store import Run
from ..summary import control
from ..summary.ranks import JUDGED, RANKED, STUDY, Published, mean_ranks, ranked_metrics, read_tables
from ..summary.sweeps import FIDELITY, Sweeps, read_sweeps
from ..summary.table import Comparison, Figure, compare_methods, figures, frame
from .drawing import curves, embed_picture, scatter

if TYPE_CHECKING:
    import pandas as pd

SUBJECTS, PROMPTS, COLUMNS, CASES = 6, 2, 8, 6
"""How much of a run is shown in pictures: a page is to be read, the run's folder has the rest."""
SUBJECT_ALONE = {"clip-i": "clip-i-subject", "dino-i": "dino-i-subject"}
"""The paper's CLIP-I and DINO-I are of the segmented subject; where a run has those they are ranked."""


@dataclass(frozen=True)
class Row:
    """A line of the table: values by metric, formatted, and the mean rank."""

    label: str
    rank: str
    cells: dict[str, str]
    kind: str
    """`method`, `beside` or `paper`."""
    places: dict[str, str] = field(default_factory=dict)
    """Metric to `best` or `second` among the methods, as the paper's bold and underlined numbers."""


@dataclass(frozen=True)
class Case:
    """A picture shown with what was asked for."""

    picture: str
    title: str
    text: str


def build(run: Run, study: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None) -> dict[str, Any]:
    """Everything that the templates name.

    Args:
        study: method to `flex` and `id-pres` to an interval in percent (`evaluate study-result`).
    """
    table = frame(run)
    cells = figures(table) or {method["name"]: {} for method in run.record["methods"]}
    sweeps = read_sweeps(run)
    method_of = dict(zip(table["label"], table["method"], strict=True)) or {label: label for label in cells}
    metrics = [metric for metric in DEFINITIONS if any(metric in own for own in cells.values())]
    published = read_tables()
    own = {
        label: {m: c.value for m, c in row.items()} for label, row in cells.items() if method_of[label] not in BESIDE
    }
    ranked = [SUBJECT_ALONE[m] if SUBJECT_ALONE.get(m) in metrics else m for m in RANKED]
    kept = ranked_metrics(own, ranked)
    return {
        "run": run,
        "record": run.record,
        "titles": {metric: d.title for metric, d in DEFINITIONS.items()},
        "metrics": [m for m in metrics if m not in JUDGED],
        "judged": [m for m in metrics if m in JUDGED],
        "study": [name for name in STUDY if study],
        "rows": _rows(cells, method_of, mean_ranks(own, kept), study or {}),
        "paper": [_published(row) for row in published.values()],
        "ranked": [DEFINITIONS[m].title for m in kept],
        "not_ranked": [DEFINITIONS[m].title for m in ranked if m not in kept],
        "scatter": _scatter(cells, metrics, published),
        "curves": _curves(table, cells, metrics, run),
        "control": {method: control.summarize(own) for method, own in sweeps.of_method.items()},
        "control_names": control.DEFINITIONS | {control.TAIL: "95th percentile of the largest jump over subjects"},
        "sweeps": sweeps,
        "comparisons": compare_methods(table),
        "grid": _grid(run, table),
        "cases": _cases(run, table, sweeps.preservation),
        "left_out": left_out(run, sweeps),
        "definitions": [
            {"id": m, **vars(DEFINITIONS[m]), **run.record["metrics"].get(m, {"weights": {}, "lacking": []})}
            for m in DEFINITIONS
        ],
    }


def left_out(run: Run, sweeps: Sweeps) -> dict[str, list[str]]:
    """Sentences about everything that is in no average, by what kind of thing it is."""
    missed = [s for s in run.scores if s["note"] == MISSED]
    found = {
        "The run": [] if run.finished else ["It was not finished: run the same `evaluate score` again."],
        "The benchmark": list(run.record["problems"]),
        "Pictures": [f"{m['name']}: {text}" for m in run.record["methods"] for text in m["problems"]],
        "Scores": [
            f"{s['method']}, {s['picture']}, {s['metric']}: {s['note']}" for s in run.scores if s["score"] is None
        ],
        "Subjects not found (they count 0)": [f"{s['method']}, {s['picture']}, {s['metric']}" for s in missed],
        "Sweeps": sweeps.left_out,
        "Empty columns": tell_lacking({m: entry["lacking"] for m, entry in run.record["metrics"].items()}),
    }
    return {title: texts for title, texts in found.items() if texts}


def shown(cell: Figure) -> str:
    """A value with its interval; * for left-out pictures, † for subjects that were not found."""
    digits = 3 if abs(cell.high) < 2 else 1 if cell.value >= 20 else 2
    marks = ("*" if cell.left_out else "") + ("†" if cell.missed else "")
    if cell.subjects < 2:
        return f"{cell.value:.{digits}f}{marks}"
    return f"{cell.value:.{digits}f}{marks} [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"


def _rows(
    cells: Mapping[str, Mapping[str, Figure]],
    method_of: Mapping[str, str],
    ranks: Mapping[str, float],
    study: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[Row]:
    rows = []
    for label, own in cells.items():
        values = {metric: shown(cell) for metric, cell in own.items()}
        for name, share in study.get(label, {}).items():
            values[name] = f"{share['value']:.1f} [{share['low']:.1f}, {share['high']:.1f}]"
        kind = "beside" if method_of[label] in BESIDE else "method"
        rows.append(Row(label, f"{ranks[label]:.1f}" if label in ranks else "", values, kind))
    for metric in {metric for own in cells.values() for metric in own}:
        there = [row for row in rows if row.kind == "method" and metric in cells[row.label]]
        there.sort(key=lambda row: -cells[row.label][metric].value)
        for row, place in zip(there if len(there) > 1 else [], ("best", "second"), strict=False):
            row.places[metric] = place
    return sorted(rows, key=lambda row: row.kind != "method")


def _published(row: Published) -> Row:
    values = {name: f"{value:.3f}" if value < 9 else f"{value:g}" for name, value in row.values.items()}
    return Row(row.method, f"{row.mean_rank:.1f}", values, "paper")


def _scatter(
    cells: Mapping[str, Mapping[str, Figure]], metrics: Sequence[str], published: Mapping[str, Published]
) -> str | None:
    across = next(
        (metric for metric in ("clip-i-subject", "clip-i", "dino-i-subject", "dino-i") if metric in metrics), None
    )
    if across is None:
        return None
    points = [(label, own[across], own[FIDELITY]) for label, own in cells.items() if across in own and FIDELITY in own]
    if not points:
        return None
    same = "clip-i" if across.startswith("clip-i") else "dino-i"
    paper = {name: (row.values[same], row.values[FIDELITY]) for name, row in published.items()}
    return scatter(points, paper, DEFINITIONS[across].title)


def _curves(
    table: pd.DataFrame, cells: Mapping[str, Mapping[str, Figure]], metrics: Sequence[str], run: Run
) -> list[tuple[str, str]]:
    """Title and figure of each metric over each knob that some method was swept by."""
    knobs = {entry["name"]: entry["knob"] for entry in run.record["methods"] if entry["knob"]}
    places = table.drop_duplicates("label")
    found = []
    for knob in sorted(set(knobs.values())):
        for metric in metrics:
            lines = {}
            for method in (name for name, own in knobs.items() if own == knob):
                own = places[places["method"] == method]
                points = [
                    (_value(setting, knob), cells[label][metric])
                    for label, setting in zip(own["label"], own["setting"], strict=True)
                    if metric in cells[label] and not math.isnan(_value(setting, knob))
                ]
                if len({value for value, _ in points}) == len(points) > 1:
                    lines[method] = sorted(points, key=lambda point: point[0])
            if lines:
                found.append(
                    (f"{DEFINITIONS[metric].title} over {knob}", curves(lines, knob, DEFINITIONS[metric].title))
                )
    return found


def _value(setting: str, knob: str) -> float:
    parts = dict(part.split("=") for part in setting.split())
    return float(parts.get(knob, "nan"))


def _grid(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """The first subjects and prompts, the reference on the left, a column per label; of many labels evenly many."""
    places = table.drop_duplicates("label")
    labels = list(places[~places["method"].isin(BESIDE)]["label"])
    if len(labels) > COLUMNS:
        labels = [labels[round(i * (len(labels) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
    first = table[table["label"].isin(labels)].drop_duplicates(["label", "subject", "prompt"])
    rows = []
    for subject in first["subject"].unique()[:SUBJECTS]:
        own = first[first["subject"] == subject]
        for prompt in own["prompt"].unique()[:PROMPTS]:
            asked = own[own["prompt"] == prompt].set_index("label")
            entries = {
                label: run.pictures[asked.loc[label, "method"], asked.loc[label, "picture"]] for label in asked.index
            }
            reference = next(iter(entries.values()))["reference"]
            rows.append(
                {
                    "prompt": prompt,
                    "reference": embed_picture(Path(reference)),
                    "pictures": [embed_picture(Path(entries[x]["path"])) if x in entries else "" for x in labels],
                }
            )
    return {"labels": labels, "rows": rows}


def _cases(run: Run, table: pd.DataFrame, preservation: str | None) -> list[dict[str, Any]]:
    """The best and the worst pictures of each method by preservation and by CLIP-T."""
    found = []
    for metric in (preservation, FIDELITY):
        scores = table[(table["metric"] == metric) & ~table["method"].isin(BESIDE)].dropna(subset="value")
        for method, own in scores.groupby("method", sort=False):
            ordered = own.sort_values("value", kind="stable")
            for title, part in (("worst", ordered.head(CASES)), ("best", ordered.tail(CASES)[::-1])):
                found.append(
                    {"title": f"{method}: {title} by {DEFINITIONS[str(metric)].title}", "cases": _shown(run, part)}
                )
    return found


def _shown(run: Run, part: pd.DataFrame) -> list[Case]:
    cases = []
    for method, picture, value in part[["method", "picture", "value"]].itertuples(index=False):
        entry = run.pictures[method, picture]
        cases.append(Case(embed_picture(Path(entry["path"])), f"{value:.3f}", f"{entry['subject']}: {entry['prompt']}"))
    return cases


__all__ = ["Case", "Comparison", "Row", "build", "left_out", "shown"]
