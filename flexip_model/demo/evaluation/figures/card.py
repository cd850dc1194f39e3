"""The figures in the model card: written from the record, between two marks, so that the two never differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ....common.errors import FlexIPError
from ....files.safefile import atomic
from ..subjects import JUDGED_STYLES
from .compare import COMPARED
from .curves import LABELS

BEGIN, END = "<!-- figures: written by `demo-model evaluate` -->\n", "<!-- end of figures -->\n"
_SHOWN = {
    "first": "subject: the judge's first of 51",
    "first_raw": "by raw pixels",
    "concept": "word: the judge's first of 51",
    "background": "background",
    "style": "style",
    "both": "subject, background, style",
}
_ALONG = {
    ("own", "first"): "subject: the judge's first of 51",
    ("own", "text"): "background and style",
    ("own", "both"): "subject, background, style",
    ("other", "asked"): "the prompt names another thing: judge names what is asked for",
    ("other", "kept"): "the same: judge names the reference",
}
"""What is told of every adapter along the knob, by the kind of prompts."""
_POINTS = 0.05
"""How far γ = 0 may be from the base alone."""


class Goal(NamedTuple):
    """A line of the first table: `wanted` and `found` are shares; `at_least` false asks for a distance of at most."""

    what: str
    wanted: float
    found: float | None
    at_least: bool = True

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "within"
        wanted = f"{sign} {_percent(self.wanted)}" if self.at_least else f"{sign} {100 * self.wanted:.0f} points"
        if self.found is None:
            return f"| {self.what} | {wanted} | not measured | |"
        missed = self.wanted - self.found if self.at_least else self.found - self.wanted
        found = _percent(self.found) if self.at_least else f"{100 * self.found:.1f} points"
        verdict = "met" if missed <= 0 else f"missed by {100 * missed:.1f} points"
        return f"| {self.what} | {wanted} | {found} | {verdict} |"


def goals(record: dict[str, Any]) -> list[Goal]:
    """What was to hold, and what was found."""
    base, figures, alone = record["base"], record["figures"], record["baselines"]["no_adapter"]["own"]
    own, best = figures["own"], f"{figures['best']:g}"
    found = [Goal("base alone, 3D: the word is recognized", 0.6, base["3d"]["concept"])]
    found += [Goal(f"base alone: style as asked, {style}", 0.9, base[style]["style"]) for style in JUDGED_STYLES]
    worst = min(base[style]["background"] for style in JUDGED_STYLES)
    found.append(Goal("base alone: background as asked, the style with the fewest", 0.97, worst))
    for measure in ("concept", "style", "background"):
        apart = max(0.0, alone[measure]["value"] - own["0"][measure]["value"])
        found.append(Goal(f"γ = 0: {measure} below the base alone, same prompts", _POINTS, apart, at_least=False))
    found.append(Goal("γ = 1: the own reference is the judge's first of 51", 0.8, own["1"]["first"]["value"]))
    found.append(Goal(f"γ = {best}: subject, background and style at once", 0.6, own[best]["both"]["value"]))
    return found


def write_card(card: Path, record: dict[str, Any]) -> None:
    """Put the record's figures into the card.

    Raises:
        FlexIPError: the card has not both marks.
    """
    text = card.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise FlexIPError(f"{card} has no place for figures; it needs the lines {BEGIN.strip()} and {END.strip()}")
    with atomic(card) as path:
        path.write_text(before + begin + tables(record) + end + after, encoding="utf-8")


def tables(record: dict[str, Any]) -> str:
    """The record as Markdown tables; brackets are 95 % intervals over subjects."""
    parts = [_goals(record), _knob(record), _disagreeing(record), _base(record)]
    if record["comparison"]:
        parts.append(_comparison(record["comparison"]))
    return "\n".join([*(line for part in parts for line in (*part, "")), _judges(record), ""])


def _goals(record: dict[str, Any]) -> list[str]:
    return ["| Goal | | Found | |", "|---|---|---|---|", *(str(goal) for goal in goals(record))]


def _knob(record: dict[str, Any]) -> list[str]:
    figures, baselines = record["figures"], record["baselines"]
    rows = [(f"γ = {value}", values) for value, values in figures["own"].items()]
    rows += [
        ("no adapter", baselines["no_adapter"]["own"]),
        ("copy of the reference", baselines["copy"]["own"]),
        ("true picture, through the VAE", baselines["through_vae"]["own"]),
    ]
    return [
        _line(["", *_SHOWN.values()]),
        "|---" * (len(_SHOWN) + 1) + "|",
        *(_line([label, *(_share(values[name]) for name in _SHOWN)]) for label, values in rows),
    ]


def _disagreeing(record: dict[str, Any]) -> list[str]:
    figures, alone = record["figures"]["other"], record["baselines"]["no_adapter"]["other"]
    columns = [*figures, "no adapter"]
    lines = [_line(["The prompt names another thing", *(f"γ = {value}" for value in figures), "no adapter"])]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, label in (("asked", "judge names what is asked for"), ("kept", "judge names the reference")):
        lines.append(_line([label, *(_share(of[name]) for of in (*figures.values(), alone))]))
    return lines


def _base(record: dict[str, Any]) -> list[str]:
    base = record["base"]
    lines = [_line(["The base alone, guidance 3", *JUDGED_STYLES]), "|---" * (len(JUDGED_STYLES) + 1) + "|"]
    lines.append(_line(["prompts", *(str(base[style]["prompts"]) for style in JUDGED_STYLES)]))
    for name in ("concept", "style", "background"):
        lines.append(_line([name, *(_percent(base[style][name]) for style in JUDGED_STYLES)]))
    unseen = [base[style]["unseen"]["concept"] for style in JUDGED_STYLES]
    lines.append(_line(["concept, drawings that it never saw", *("–" if u is None else _percent(u) for u in unseen)]))
    return lines


def _comparison(comparison: dict[str, Any]) -> list[str]:
    kinds, first = comparison["kinds"], comparison["first"]
    noises = comparison["noises"]
    of = f"{comparison['subjects']} subjects, {noises} noise{'' if noises == 1 else 's'}"
    lines = [_line([f"Over the knob, medians; {of}", *(f"{_label(k)} ({kinds[k]['seeds']})" for k in kinds)])]
    lines.append("|---" * (len(kinds) + 1) + "|")
    lines.append(_line(["trained, steps × batch", *(told_runs(kinds[kind]["trained"]) for kind in kinds)]))
    for name, label in COMPARED.items():
        lines.append(_line([label, *(_number(kinds[kind]["figures"].get(name)) for kind in kinds)]))
    lines += ["", *_along(kinds)]
    others = [kind for kind in kinds if kind != first]
    lines += ["", _line([f"{_label(first)} minus", *(_label(kind) for kind in others)])]
    lines.append("|---" * (len(others) + 1) + "|")
    for name, label in COMPARED.items():
        lines.append(_line([label, *(_number(comparison["first_minus"][kind].get(name)) for kind in others)]))
    return lines


def _along(kinds: dict[str, Any]) -> list[str]:
    knob = ", ".join(next(iter(kinds.values()))["own"])
    lines = [_line([f"Shares in %, at {knob}", *(_label(kind) for kind in kinds)]), "|---" * (len(kinds) + 1) + "|"]
    for (of, name), label in _ALONG.items():
        shares = (", ".join(f"{100 * at[name]['value']:.0f}" for at in kinds[kind][of].values()) for kind in kinds)
        lines.append(_line([label, *shares]))
    return lines


def _judges(record: dict[str, Any]) -> str:
    judges, where = record["judges"], record["environment"]
    plain, through = (
        ", ".join(f"{style} {_percent(share)}" for style, share in judges[name].items())
        for name in ("style", "style_through_vae")
    )
    psnr = judges["vae_psnr_db"]
    return (
        f"The judges themselves, on true pictures of held-out instances: background {_percent(judges['background'])}; "
        f"style {plain}; through the VAE {through}. The VAE alone: {psnr['heldout']:.1f} dB on held-out instances, "
        f"{psnr['seen']:.1f} dB on trained ones. The adapter that ships was trained for {told_runs(record['trained'])} "
        f"(steps × batch). Drawn on: {record['on']}. {where['date']}, Python {where['python']}, "
        f"torch {where['torch']}, diffusers {where['diffusers']}, transformers {where['transformers']}."
    )


def told_runs(runs: Sequence[dict[str, int]]) -> str:
    """Steps × batch of runs that went on from one another."""
    return " + ".join(f"{run['steps']:,} × {run['batch']}" for run in runs) or "not told"


def _label(kind: str) -> str:
    return LABELS.get(kind, kind)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _share(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.0f} % ({100 * value['low']:.0f}–{100 * value['high']:.0f})"


def _number(value: dict[str, float] | None) -> str:
    return "–" if value is None else f"{value['value']:.3g} ({value['low']:.3g} to {value['high']:.3g})"
