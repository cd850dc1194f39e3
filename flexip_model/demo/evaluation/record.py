"""`demo-model evaluate` and `demo-model check`: measure the exported model, and compare it with what is on record."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from ...common.errors import FlexIPError
from ...files.safefile import atomic, sha256
from ..scenes.store import build
from ..stages.export import ADAPTER_FILE
from ..stages.sampling import GUIDANCE
from .card import write_card
from .evaluate import CONCEPTS, GAMMAS, NOISES, STEPS, Evaluation, measure
from .evaluate_base import base_figures, vae_figures
from .evaluate_likeness import likeness_figures
from .judge import fetch
from .outside import draw_outside
from .summary import TOLERANCE, differences, draw_curves, summary

log = logging.getLogger(__name__)

RECORD = "evaluation.json"
"""In the exported folder."""
PROTOCOL = {"gammas": GAMMAS, "noises": NOISES, "steps": STEPS, "guidance": GUIDANCE}


def evaluate(folder: Path, work: Path, processes: int, images: Path) -> None:
    """Measure all held-out subjects and the base; the record goes into `folder` and its card, if it has one,
    `curves.png` and `outside.jpg` into `images`."""
    make, rows_folder = _prepare(folder, work)
    rows = measure(make, rows_folder, range(CONCEPTS), processes)
    evaluation, figures = make(), summary(rows)
    record = {
        "weights": _hashes(folder),
        "protocol": PROTOCOL,
        "environment": environment(),
        "figures": figures,
        "base": base_figures(evaluation, rows_folder),
        "vae_psnr_db": vae_figures(evaluation, rows_folder),
        "likeness": likeness_figures(evaluation.model, evaluation.seen, evaluation.composer),
        "rows": rows,
    }
    draw_curves(figures, images / "curves.png")
    draw_outside(evaluation.model, work / "downloads", images / "outside.jpg")
    with atomic(folder / RECORD) as path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if (folder / "README.md").is_file():
        write_card(folder / "README.md", record)
    log.info(json.dumps({k: v for k, v in record.items() if k != "rows"}, indent=1))
    log.info(f"{folder / RECORD}, curves and pictures in {images}, more in {rows_folder}")


def check(folder: Path, work: Path, processes: int, subjects: int) -> None:
    """Measure the first `subjects` held-out subjects again.

    Raises:
        FlexIPError: a weights file is not the recorded one, or a measure is off by more than the tolerance.
    """
    if not 1 <= subjects <= CONCEPTS:
        raise FlexIPError(f"--subjects is {subjects}; expected 1 to {CONCEPTS}")
    path = folder / RECORD
    if not path.is_file():
        raise FlexIPError(f"{path} is missing: nothing is on record for these weights; run `demo-model evaluate`")
    record = json.loads(path.read_text(encoding="utf-8"))
    other = [name for name, digest in _hashes(folder).items() if record["weights"].get(name) != digest]
    if other:
        raise FlexIPError(f"{', '.join(other)} in {folder} is not what was measured; run `demo-model evaluate`")
    make, rows_folder = _prepare(folder, work)
    # Neither the rows of `evaluate` nor those of an earlier check: a check measures.
    fresh = rows_folder.with_name(rows_folder.name + "-check")
    shutil.rmtree(fresh, ignore_errors=True)
    rows = measure(make, fresh, range(subjects), processes)
    found = differences(rows, record["rows"])
    off = {name: pair for name, pair in found.items() if abs(pair[0] - pair[1]) > TOLERANCE}
    worst = max(found, key=lambda name: abs(found[name][0] - found[name][1]))
    log.info(
        f"{len(found)} means over {subjects} subjects; the largest difference is "
        f"{abs(found[worst][0] - found[worst][1]):.4f} ({worst}: {found[worst][0]}, on record {found[worst][1]})"
    )
    if off:
        raise FlexIPError("not as on record: " + "; ".join(f"{n}: {a}, on record {b}" for n, (a, b) in off.items()))
    log.info(f"As on record, within {TOLERANCE}.")


def _prepare(folder: Path, work: Path) -> tuple[partial[Evaluation], Path]:
    if not (folder / ADAPTER_FILE).is_file():
        raise FlexIPError(f"{folder / ADAPTER_FILE} is missing: run the stage `export` first, or name --out")
    still = work / "still"
    if not (still / "looks.json").exists():
        build(work / "downloads", still, animated=False)
    weights = fetch(work / "downloads")
    digest = hashlib.sha256(json.dumps([_hashes(folder), PROTOCOL]).encode()).hexdigest()[:12]
    return partial(Evaluation, folder, still, weights), work / "evaluation" / digest


def _hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder).as_posix()): sha256(path) for path in sorted(folder.rglob("*.safetensors"))}


def environment() -> dict[str, Any]:
    """Date and versions that a record was made with."""
    import diffusers
    import torch
    import torchvision
    import transformers

    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{m.__name__: m.__version__ for m in (torch, torchvision, diffusers, transformers)},
    }
