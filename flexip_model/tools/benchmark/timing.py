"""Measure two things in turn, so that a busy machine slows both alike, and print their ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was compared, with its sizes.
        ours, baseline: medians in `unit`; `baseline` is None where the figure stands alone.
        ratio: median of the rounds' own ratios ours / baseline.
        spread: the rounds' lowest and highest ratio.
        unit: of `ours` and `baseline`, such as `s`, `MB` or `samples/s`.
        goal: the design's goal in words, or an empty string.
    """

    what: str
    ours: float
    baseline: float | None
    ratio: float | None
    spread: tuple[float, float] | None
    unit: str
    goal: str = ""


def compare(
    what: str,
    ours: Callable[[], object],
    baseline: Callable[[], object],
    *,
    rounds: int,
    goal: str = "",
) -> Row:
    """Run both once to warm up, then `rounds` times in turn, the order swapped each round; wall time in seconds."""
    times = in_turn({"baseline": baseline, "ours": ours}, rounds)
    ratios = [a / b for a, b in zip(times["ours"], times["baseline"], strict=True)]
    a, b = (statistics.median(times[name]) for name in ("ours", "baseline"))
    return Row(what, a, b, statistics.median(ratios), (min(ratios), max(ratios)), "s", goal)


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Run all once to warm up, then `rounds` times in turn, the order swapped each round.

    Returns:
        Wall times in seconds by the calls' names, one per round.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls) if index % 2 == 0 else reversed(list(calls)):
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return times


def alone(what: str, call: Callable[[], object], *, rounds: int, goal: str = "") -> Row:
    """Run once to warm up, then `rounds` times; the median wall time in milliseconds."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return Row(what, statistics.median(times), None, None, None, "ms", goal)


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | ours | baseline | ratio (lowest to highest) | goal |", "|---|---|---|---|---|"]
    for row in rows:
        baseline = "" if row.baseline is None else f"{row.baseline:.3g} {row.unit}"
        ratio = (
            ""
            if row.ratio is None or row.spread is None
            else (f"{row.ratio:.3f} ({row.spread[0]:.3f} to {row.spread[1]:.3f})")
        )
        lines.append(f"| {row.what} | {row.ours:.3g} {row.unit} | {baseline} | {ratio} | {row.goal} |")
    return "\n".join(lines)
