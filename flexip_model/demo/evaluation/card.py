"""The figures in the model card: written from the record, between two marks, so that the two never differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.errors import FlexIPError
from ...files.safefile import atomic
from .judges import JUDGED_STYLES
from .summary import MEASURES

BEGIN, END = "<!-- figures: written by `demo-model evaluate` -->\n", "<!-- end of figures -->\n"
_NAMES = {
    "first": "top-1 retrieval accuracy: the reference is the judge's first of 51",
    "first_raw": "the same, by raw pixels",
    "background": "background",
    "style": "style",
    "text": "background and style",
    "both": "all: first, background, style",
}
_LIKENESS = {
    "background": "target and reference differ by",
    "pixels": "a linear probe of the reference's pixels leaves",
    "dino": "a linear probe of the DINO-like tokens leaves",
    "preservation": "a linear probe of P leaves",
    "first_step_seen": "the first step at γ = 1 leaves, trained subjects",
    "first_step_heldout": "the first step at γ = 1 leaves, held-out subjects",
}


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
    figures, protocol, base = record["figures"], record["protocol"], record["base"]
    shown = [name for name in MEASURES if name in _NAMES]
    lines = ["| γ | pictures | " + " | ".join(_NAMES[name] for name in shown) + " |", "|---" * (len(shown) + 2) + "|"]
    rows = [(gamma, 6 * protocol["noises"], values) for gamma, values in figures["gammas"].items()]
    rows += [
        ("no adapter", 6 * protocol["noises"], figures["baselines"]["no_adapter"]),
        ("copy of the reference", 6, figures["baselines"]["copy"]),
        ("true picture, through the VAE", 6, figures["baselines"]["through_vae"]),
    ]
    for label, pictures, values in rows:
        cells = " | ".join(_share(values[name]) for name in shown)
        lines.append(f"| {label} | {pictures} × {figures['subjects']} | {cells} |")
    steps = figures["largest_step_over_mean"]
    lines += [
        "",
        "| Over γ, per subject | |",
        "|---|---|",
        f"| preservation rises: Spearman's ρ, median | {_number(figures['spearman_preservation'])} |",
        f"| text fidelity falls: Spearman's ρ, median | {_number(figures['spearman_fidelity'])} |",
        f"| largest of 20 steps of 0.05 over their average, median | {_number(steps['median'])} |",
        f"| the same, 95th percentile of the subjects | {_number(steps['p95'])} |",
        f"| γ between 0 and 1 with the most pictures in which all holds | {figures['best_gamma']:g} |",
        "",
        "| Text fidelity, by the style asked for | " + " | ".join(JUDGED_STYLES) + " |",
        "|---" * (len(JUDGED_STYLES) + 1) + "|",
    ]
    styles = [figures["fidelity_by_style"][style] for style in JUDGED_STYLES]
    for gamma in figures["gammas"]:
        lines.append(f"| γ = {gamma} | " + " | ".join(_number(style["gammas"][gamma]) for style in styles) + " |")
    lines += [
        "| Spearman's ρ over γ, median | " + " | ".join(_number(style["spearman"]) for style in styles) + " |",
        "",
        f"| The base alone, trained subjects, {base['prompts_per_style']} prompts each | "
        + " | ".join(JUDGED_STYLES)
        + " |",
        "|---" * (len(JUDGED_STYLES) + 1) + "|",
    ]
    for name, label in (
        ("subject", "top-1 retrieval accuracy: the subject is the judge's first of 51"),
        ("style", "style"),
        ("background", "background"),
    ):
        lines.append(f"| {label} | " + " | ".join(f"{100 * base[style][name]:.0f} %" for style in JUDGED_STYLES) + " |")
    lines += [
        "",
        "| Of a picture's variance of latents | inside, median | 95th percentile | outline, median | 95th percentile |",
        "|---|---|---|---|---|",
    ]
    for name, label in _LIKENESS.items():
        values = record["likeness"]["unexplained"][name]
        left = [_share(values[kind][figure]) for kind in ("inside", "outline") for figure in ("median", "p95")]
        lines.append(f"| {label} | " + " | ".join(left) + " |")
    true, psnr, where = base["judges_on_true_pictures"], record["vae_psnr_db"], record["environment"]
    lines += [
        "",
        f"The judges themselves, on true pictures of held-out subjects: background {100 * true['background']:.0f} %, "
        f"style {100 * true['style']:.0f} %. The VAE alone: {psnr['heldout']:.1f} dB on held-out subjects, "
        f"{psnr['seen']:.1f} dB on trained ones. {where['date']}, Python {where['python']}, torch {where['torch']}, "
        f"diffusers {where['diffusers']}, transformers {where['transformers']}, {where['machine']}.",
        "",
    ]
    return "\n".join(lines)


def _share(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.0f} % ({100 * value['low']:.0f}–{100 * value['high']:.0f})"


def _number(value: dict[str, float]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
