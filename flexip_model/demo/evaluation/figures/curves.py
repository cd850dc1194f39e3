"""The curves of the card: what the knob does to subject and prompt, for FlexIP and for the adapters beside it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..evaluate import FINE, KNOB

COLORS = {"shipped": "#10253f", "flexip": "#1f5fa8", "ip-adapter-plus": "#d07a1a", "ip-adapter": "#3a8f4d"}
LABELS = {
    "shipped": "FlexIP as it ships",
    "flexip": "FlexIP",
    "ip-adapter": "IP-Adapter",
    "ip-adapter-plus": "IP-Adapter-Plus",
}
PANELS = (
    ("Keeps the subject", (("own", "first"),), "reference is the judge's first of 51"),
    ("Follows the prompt", (("own", "text"),), "background and style as asked"),
    ("Both at once", (("own", "both"),), "subject, background and style"),
    (
        "Prompt names another thing",
        (("other", "kept"), ("other", "asked")),
        "judge names reference (–) or prompt (- -)",
    ),
)


def draw_curves(record: Mapping[str, Any], path: Path) -> None:
    """Four panels over the knob with intervals, the base alone dotted, and the size of each step of the fine sweep.

    The adapters of the record's comparison that `COLORS` names are drawn, and the exported one where it was trained for
    other steps than the FlexIP among them.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figures, baselines, kinds = record["figures"], record["baselines"], record["comparison"].get("kinds", {})
    labels = dict(LABELS)
    shown = {name: kinds[name] for name in COLORS if name in kinds}
    if "flexip" not in kinds or kinds["flexip"]["trained"] != record["trained"]:
        shown = {"shipped": figures, **shown}
        labels["flexip"] = "FlexIP, trained as long as the others"
    figure, axes = pyplot.subplots(1, len(PANELS) + 1, figsize=(4 * (len(PANELS) + 1), 4), layout="constrained")
    for axis, (title, lines, label) in zip(axes, PANELS, strict=False):
        for name, of_kind in shown.items():
            for number, (kind, measure) in enumerate(lines):
                values = [of_kind[kind][f"{value:g}"][measure] for value in KNOB]
                color = COLORS[name]
                axis.plot(
                    KNOB,
                    [v["value"] for v in values],
                    "-o" if number == 0 else "--o",
                    ms=4,
                    color=color,
                    label=labels[name] if number == 0 else None,
                )
                low, high = ([v[end] for v in values] for end in ("low", "high"))
                axis.fill_between(KNOB, low, high, color=color, alpha=0.15)
        kind, measure = lines[-1]
        alone = baselines["no_adapter"][kind][measure]["value"]
        axis.axhline(alone, color="#555", ls=":", lw=1, label="no adapter")
        axis.set(title=title, xlabel="γ or scale", ylabel=f"share: {label}", ylim=(-0.03, 1.03))
    axes[0].legend(fontsize=8)
    steps = [100 * step for step in figures["mean_pixel_steps"]]
    axis = axes[-1]
    axis.bar([(a + b) / 2 for a, b in pairwise(FINE)], steps, 0.045, color="#777")
    axis.axhline(sum(steps) / len(steps), color="#1f5fa8", lw=1, label="average")
    axis.set(title="What a step of 0.05 changes", xlabel="γ", ylabel="mean change of a pixel, %")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
