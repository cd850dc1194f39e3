"""The tables of long runs: time, memory, storage and cost."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ...common.errors import FlexIPError
from .arithmetic import Arithmetic
from .estimates import CARDS, PACKERS, TRAINING_RUNS, UTILIZATION, Card, Estimate, TrainingRun, estimate
from .on_disk import FRAMES_IN_A_VARIANT, PHOTO, VIDEO, OnDisk


def choose_cards(options: argparse.Namespace) -> dict[str, Card]:
    """`CARDS` with what the command line says of them, and cards that it adds.

    Raises:
        FlexIPError: not CARD=NUMBER, another card, a number that is not above 0, a new card without peak or price.
    """
    cards = dict(CARDS)
    for text in options.add:
        name = text.partition("=")[0]
        if name in cards:
            raise FlexIPError(f"--add {text}: there is a card {name} already; --peak, --price, --speed change it")
        if name:
            cards[name] = Card(name, 0, 0, UTILIZATION, 0)
    for field in ("memory", "peak", "utilization", "price", "speed"):
        for text in options.add if field == "memory" else getattr(options, field):
            name, _, number = text.partition("=")
            try:
                value = float(number)
            except ValueError:
                value = 0.0
            if name not in cards or not (0 < value < math.inf) or (field == "utilization" and value > 1):
                raise FlexIPError(
                    f"--{'add' if field == 'memory' else field} {text} is not CARD=NUMBER; cards are "
                    f"{', '.join(cards)} and those of --add, numbers above 0 (a utilization is at most 1)"
                )
            cards[name] = replace(cards[name], **{field: value})  # type: ignore[arg-type]
    for name, card in cards.items():
        if not (card.peak or card.speed) or not card.price:
            raise FlexIPError(
                f"--add {name}={card.memory:g} needs more of the card: --peak {name}=TFLOPS (or --speed) and "
                f"--price {name}=USD"
            )
    return cards


def training_runs(cards: dict[str, Card]) -> tuple[TrainingRun, ...]:
    """`TRAINING_RUNS`, and the first two of them on each card that was added."""
    added = [name for name in cards if name not in CARDS]
    return (
        *TRAINING_RUNS,
        *(replace(run, name=f"{run.name}, {name}", card=name) for name in added for run in TRAINING_RUNS[:2]),
    )


def print_scale(options: argparse.Namespace) -> None:
    """Count, measure, compute, and print the tables of `docs/scale.md`.

    Raises:
        FlexIPError: as `choose_cards`.
    """
    from .arithmetic import count, full_size
    from .on_disk import measure_disk

    cards = choose_cards(options)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory(prefix="flexip-scale-") as folder:
        full = full_size()
        sample = count(full)
        disk = measure_disk(Path(folder), full)
    print(report(cards, sample, disk))


def report(cards: dict[str, Card], sample: Arithmetic, disk: OnDisk) -> str:
    """The tables, as Markdown."""
    counted = [
        ("UNet, forward", sample.unet),
        ("UNet and adapter, forward", sample.forward),
        ("UNet and adapter, forward and backward", sample.trained),
        ("VAE, encoding", sample.vae),
        ("CLIP ViT-H/14", sample.clip),
        ("DINOv2-L/14", sample.dino),
        ("text encoder", sample.text),
        ("**a sample without caches**", sample.uncached),
        ("**a sample with cached latents and [CLS]**", sample.cached),
    ]
    measured = [
        ("loading without caches, 512 px, samples/s of one process with a core to itself", f"{disk.loader:.1f}"),
        (
            "tensors per frame with a mask in the caches: latents, [CLS], DINO",
            ", ".join(str(disk.passes[kind]) for kind in ("latents", "clip", "dino")),
        ),
        ("bytes of a cache file per tensor beside its values", f"{disk.header:.0f}"),
        ("index bytes per group of one frame, Parquet and mapped", f"{disk.parquet:.0f}, {disk.arrow:.0f}"),
        (
            f"index bytes per group of {FRAMES_IN_A_VARIANT} frames, Parquet and mapped",
            f"{disk.variant_parquet:.0f}, {disk.variant_arrow:.0f}",
        ),
        ("processor seconds to draw an epoch's order of 12 M groups", f"{disk.permutation:.2f}"),
        (
            f"processor seconds to pack a picture of {PHOTO[0]} × {PHOTO[1]}, a video of {VIDEO[0]} × {VIDEO[1]} and "
            f"{VIDEO[2]} s",
            f"{disk.pack_picture:.3f}, {disk.pack_video:.2f}",
        ),
        ("parameters trained, frozen", f"{sample.trainable / 1e6:.1f} M, {sample.frozen / 1e6:.0f} M"),
        ("bytes that a sample keeps for the backward", _bytes(sample.activations)),
    ]
    inputs = [
        (
            key,
            card.name,
            f"{card.memory:g}",
            f"{card.peak:g}",
            f"{card.utilization:g}",
            f"{card.speed:g}" if card.speed else "not measured",
            f"{card.price:.2f}",
        )
        for key, card in cards.items()
    ]
    runs = training_runs(cards)
    estimates = [estimate(run, cards[run.card], sample, disk) for run in runs]
    return "\n\n".join(
        [
            _table(("counted, per sample of 512 px", "GMAC"), ((name, f"{value:.0f}") for name, value in counted)),
            _table(("measured on this machine, or counted", ""), measured),
            _table(
                (
                    "card",
                    "",
                    "GB",
                    "TFLOP/s",
                    "utilization (assumed)",
                    "samples/s, cached (measured)",
                    "USD per hour (assumed)",
                ),
                inputs,
            ),
            _table(("", *(run.name for run in runs)), _rows(cards, runs, estimates)),
        ]
    )


def _rows(cards: dict[str, Card], runs: Sequence[TrainingRun], estimates: list[Estimate]) -> list[tuple[str, ...]]:
    def row(name: str, values: Iterable[str]) -> tuple[str, ...]:
        return (name, *values)

    return [
        row("cards", (f"{run.cards} × {cards[run.card].name}" for run in runs)),
        row(
            "samples, groups, frames",
            (f"{run.samples / 1e6:.1f} M, {run.groups / 1e6:.1f} M, {run.frames / 1e6:.1f} M" for run in runs),
        ),
        row("batch per card × accumulation", (f"{run.batch} × {run.accumulation}" for run in runs)),
        row("steps", (f"{p.steps:,.0f}" for p in estimates)),
        row("time without caches", (_hours(p.uncached) for p in estimates)),
        row("time with caches + making them", (f"{_hours(p.cached)} + {_hours(p.caching)}" for p in estimates)),
        row("cost of the cheaper way, USD", (f"{p.cost:,.0f}" for p in estimates)),
        row("memory of a card, at least", (_bytes(p.memory) for p in estimates)),
        row("pictures", (_bytes(p.pictures) for p in estimates)),
        row(
            f"packing on one core, on {PACKERS[0]} machines of {PACKERS[1]} cores",
            (f"{_hours(p.packing)}, {_hours(p.packing / math.prod(PACKERS))}" for p in estimates),
        ),
        row("index, and as mapped", (f"{_bytes(p.index)}, {_bytes(p.mapped)}" for p in estimates)),
        row("caches: latents, [CLS]", (f"{_bytes(p.latents)}, {_bytes(p.cls)}" for p in estimates)),
        row("cache of DINO, if made", (_bytes(p.dino) for p in estimates)),
        row("loading processes, in all", (f"{p.loaders}" for p in estimates)),
        row("reads of the shards, in all", (f"{p.reads:,.0f}/s, {_bytes(p.read_bytes)}/s" for p in estimates)),
        row("gradients sent per card and step", (_bytes(p.traffic) if p.traffic else "none" for p in estimates)),
        row(
            "network per card that hides them",
            (f"{p.network * 8 / 1e9:.1f} Gbit/s" if p.network else "none" for p in estimates),
        ),
    ]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
