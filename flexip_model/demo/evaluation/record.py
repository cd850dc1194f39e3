"""`demo-model evaluate` and `demo-model check`: measure the exported model, and compare it with what is on record."""

from __future__ import annotations

import json
import logging
import platform
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ...common.errors import FlexIPError
from ...files.safefile import atomic
from ..scenes.store import Store, build
from .beside import draw_beside
from .evaluate import NOISES
from .figures.card import tables, write_card
from .figures.compare import compare, seed_groups
from .figures.curves import draw_curves
from .figures.summary import TOLERANCE, baselines, differences, summary
from .judge import fetch
from .outside import draw_outside
from .rows import (
    BASE,
    BASELINES,
    JUDGES,
    PROTOCOL,
    SHIPPED,
    Measurement,
    adapter_files,
    digest_of,
    evaluate_adapters,
    hashes,
    read_rows,
    rows_beside,
    runs_of,
)
from .shipped import Shipped
from .subjects import CONCEPTS

log = logging.getLogger(__name__)

RECORD = "evaluation.json"
"""In the exported folder."""


def evaluate(
    folder: Path,
    work: Path,
    images: Path,
    *,
    rows: Path | None = None,
    adapters: Path | None = None,
    noises: int = NOISES,
    subjects: int = CONCEPTS,
) -> None:
    """Measure what is not measured yet; the record goes into `folder` and its card, if it has one, `curves.png`,
    `outside.jpg` and, with `adapters`, `beside.jpg` into `images`.

    Args:
        rows: where `evaluate_adapters` wrote what it measured, here or on another machine; a folder in `work` by
            default.
        adapters: those to compare with, where they are not among these rows.
        noises: a prompt, of these adapters.
        subjects: how many of the held-out ones, the first of the vocabulary's order; the card says how many.
    """
    rows = rows or work / "evaluation"
    weights = fetch(work / "downloads")
    evaluate_adapters(folder, _store(work), weights, rows, adapters=adapters, noises=noises, subjects=subjects)
    record = make_record(folder, rows)
    with atomic(folder / RECORD) as path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if (folder / "README.md").is_file():
        write_card(folder / "README.md", record)
    draw_curves(record, images / "curves.png")
    model = Shipped(folder)
    draw_outside(model, work / "downloads", images / "outside.jpg")
    if adapters is not None:
        draw_beside(model, Store.open(_store(work)), adapter_files(folder, adapters), images / "beside.jpg")
    log.info(tables(record))
    log.info(f"{folder / RECORD}, curves and pictures in {images}, more in {rows}")


def make_record(folder: Path, rows: Path) -> dict[str, Any]:
    """The record of what was measured of an exported folder.

    Raises:
        FlexIPError: not all of it was.
    """
    digest, exported = digest_of(folder), adapter_files(folder, None)[SHIPPED]
    wanted = {
        JUDGES: digest,
        BASE: digest,
        BASELINES: digest_of(folder, noises=NOISES),
        SHIPPED: digest_of(folder, exported, NOISES),
    }
    found = {name: read_rows(rows, name, of) for name, of in wanted.items()}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise FlexIPError(f"{rows} has nothing on {', '.join(missing)} of {folder}; run `demo-model evaluate-adapters`")
    judges, base, beside, shipped = (found[name] or {} for name in wanted)
    others = rows_beside(rows, folder)
    # FlexIP first: the others' differences are from it.
    order = sorted(others, key=lambda name: (not name.startswith("flexip-seed"), name))
    return {
        "weights": hashes(folder),
        "protocol": PROTOCOL,
        "environment": environment(),
        "on": shipped["on"],
        "trained": runs_of(shipped["training"]),
        "figures": summary(shipped["rows"]),
        "base": base["figures"],
        "judges": judges["figures"],
        "baselines": baselines(beside["rows"]),
        "comparison": _comparison({name: others[name] for name in order}),
        "rows": shipped["rows"],
    }


def _comparison(others: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if not others:
        return {}
    found = compare({name: of["rows"] for name, of in others.items()})
    for kind, names in seed_groups(list(others)).items():
        found["kinds"][kind]["trained"] = runs_of(others[names[0]]["training"])
    return {"noises": next(iter(others.values()))["noises"], **found}


def check(folder: Path, work: Path, subjects: int) -> None:
    """Measure the first `subjects` held-out subjects again, on the processor.

    Raises:
        FlexIPError: a weights file is not the recorded one, or a measure is off by more than the tolerance.
    """
    if not 1 <= subjects <= CONCEPTS:
        raise FlexIPError(f"--subjects is {subjects}; expected 1 to {CONCEPTS}")
    path = folder / RECORD
    if not path.is_file():
        raise FlexIPError(f"{path} is missing: nothing is on record for these weights; run `demo-model evaluate`")
    record = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name, digest in hashes(folder).items() if record["weights"].get(name) != digest]
    if other:
        raise FlexIPError(f"{', '.join(other)} in {folder} is not what was measured; run `demo-model evaluate`")
    fresh = work / "evaluation-check"
    shutil.rmtree(fresh, ignore_errors=True)  # what an earlier check left is no measurement
    measure = Measurement(
        folder, _store(work), fetch(work / "downloads"), fresh, torch.device("cpu"), record["judges"]["probe"]
    )
    measure.adapter(SHIPPED, adapter_files(folder, None)[SHIPPED], subjects)
    rows = json.loads((fresh / f"{SHIPPED}.json").read_text(encoding="utf-8"))["rows"]
    found = differences(rows, record["rows"])
    off = {name: pair for name, pair in found.items() if abs(pair[0] - pair[1]) > allowed(name, subjects * NOISES)}
    worst = max(found, key=lambda name: abs(found[name][0] - found[name][1]))
    log.info(
        f"{len(found)} means over {subjects} subjects; the largest difference is "
        f"{abs(found[worst][0] - found[worst][1]):.4f} ({worst}: {found[worst][0]}, on record {found[worst][1]})"
    )
    if off:
        raise FlexIPError("not as on record: " + "; ".join(f"{n}: {a}, on record {b}" for n, (a, b) in off.items()))
    log.info(f"As on record, within {TOLERANCE} and one picture.")


def allowed(name: str, drawn: int) -> float:
    """How far a mean over this many drawings of each prompt may be from the one on record: by `TOLERANCE`, and by one
    picture that a judge names otherwise, since other processors round other."""
    of = {"style_3d": 4, "style_cartoon": 1, "style_flat": 1}
    prompts = of.get(name.split(" ", 1)[0], 2 if "(other)" in name else 6)
    return TOLERANCE + 1 / (prompts * drawn)


def _store(work: Path) -> Path:
    """The folder of drawings; without animation frames, which nothing here reads, where there is none."""
    if (work / "store" / "looks.json").exists():
        return work / "store"
    if not (work / "still" / "looks.json").exists():
        build(work / "downloads", work / "still", animated=False)
    return work / "still"


def environment() -> dict[str, Any]:
    """Date and versions that a record was made with."""
    import diffusers
    import torchvision
    import transformers

    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{m.__name__: m.__version__ for m in (torch, torchvision, diffusers, transformers)},
    }
