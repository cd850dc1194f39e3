"""One value of several runs over their steps, as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...common.errors import FlexIPError
from ...files.safefile import atomic

LOG = "log.jsonl"


def read_curve(run: Path, value: str) -> tuple[list[int], list[float]]:
    """Steps and values of a run's log, by step.

    Args:
        run: the run's output folder.
        value: a name that TensorBoard shows too, such as `validation/all`.

    Raises:
        FlexIPError: no log there, or the value is not in it, with the names that are.
    """
    path = run / LOG
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise FlexIPError(f"{path} cannot be read ({error}); give the output folder of a run") from error
    found = {entry["step"]: float(entry[value]) for entry in entries if entry.get(value) is not None}
    if not found:
        names = sorted({name for entry in entries for name in entry} - {"step"})
        raise FlexIPError(f"the log of {run} has no {value}; it has {', '.join(names) or 'nothing'}")
    steps = sorted(found)
    return steps, [found[step] for step in steps]


def draw_curves(runs: Sequence[Path], value: str, out: Path) -> None:
    """Write a PNG with a curve for each run, named by its folder.

    Raises:
        FlexIPError: as `read_curve`; the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = {run.name: read_curve(run, value) for run in runs}
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, "o-", ms=3, label=name)
    axes.set(xlabel="step", ylabel=value)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic(out) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)
