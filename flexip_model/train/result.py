"""The results of a run: an adapter file for the nodes and its model card."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import FlexIPError
from ..files.adapter_file import save_adapter, tensors_hash
from ..files.safefile import atomic
from ..method.config import FlexIPConfig
from .configs.options import TrainConfig
from .shared import state

NOT_STATED = "not stated"
"""What file and card say where the config does not: neither is the program's to choose."""
LARGEST = float(torch.finfo(torch.float16).max)
"""What an adapter file can hold."""
CARD = """---
license: {license_id}
---
# {title}

A FlexIP adapter for models of Stable Diffusion 1.5's structure, trained by `python -m flexip_model train`.

| | |
|---|---|
| File | `{file}`, SHA-256 of its tensors `{hash}` |
| License of the weights | {license} |
| Steps | {step} of {steps} planned; {seen} samples (batch {batch} × {world} devices × {accumulation}) |
| Weights | averaged (decay {ema}) |
| Gate | α {alpha}, β {beta} (Eq. 5), spread by {gamma_spread} |
| Dial | {dial} |
| Base | `{base}`{vae} |
| Encoders | {encoders} |
| Begun from | {start} |
| References | crop {crop}; {white} of those with a mask on white |
| Learning rate | {lr}, weight decay {weight_decay}, {schedule} after {warmup} steps of warm-up |
| Unreadable samples, skipped steps | {unreadable}, {skipped} |
| Changed on the way | {changes} |

## Data

| Data set | Groups | Kinds | License |
|---|---|---|---|
{data}

What these licenses allow for the weights is for whoever shares this file to check.

## How to use it

Put `{file}` into ComfyUI's `models/flexip` and choose it in *Load FlexIP Adapter*.
"""


def write(
    folder: Path,
    found: state.Checkpoint,
    *,
    config: TrainConfig,
    adapter: FlexIPConfig,
    about: dict[str, Any],
    target: Path | None = None,
) -> Path:
    """Write the averaged weights of a checkpoint as an adapter file, with a card beside it; returns the file.

    Args:
        about: what the run knows of its encoders (`encoders`), its data (`data`), what was changed when it went on
            (`changes`), and how its dial was measured (`dial`).
        target: the file; by default `flexip-step-N.safetensors` in the run's folder.

    Raises:
        FlexIPError: as `save_adapter`; the file or its card cannot be written.
    """
    path = target or folder / f"flexip-step-{found.step:07d}.safetensors"
    if not path.parent.is_dir():
        raise FlexIPError(f"there is no folder {path.parent}; make it first")
    tensors = found.parts["ema"]
    largest = largest_weight(tensors.values())
    if not largest <= LARGEST:
        raise FlexIPError(
            f"the run had diverged at step {found.step}: its averaged weights reach {largest:.3g}, and a file holds at "
            f"most {LARGEST:.0f}; export an earlier step with --step, or train again with a lower lr"
        )
    changes = about.get("changes", [])
    training = {
        "trained": True,
        "steps": found.step,
        "samples": found.info["seen"],
        "data": about["data"],
        "base": _name(config.base),
        "start": _name(config.start),
        "references": {"crop": config.references.crop, "white": config.references.white},
        "seed": config.seed,
        "date": date.today().isoformat(),
    }
    if config.vae:
        training["vae"] = _name(config.vae)
    if changes:
        training["changes"] = changes
    measured = ""
    if adapter.dial:
        training["dial"] = about["dial"]
        measured = ", measured on {subjects} subjects with {steps} steps and guidance {guidance}".format(
            **about["dial"]
        )
    save_adapter(
        path,
        adapter,
        tensors,
        training=training,
        encoders=about["encoders"],
        title=config.title or NOT_STATED,
        license=config.license or NOT_STATED,
    )
    rows = "\n".join(f"| {d['name']} | {d['groups']} | {d['kinds']} | {d['license']} |" for d in about["data"])
    names = "; ".join(f"{e['name']} `{e['hash'][:12]}`" for e in about["encoders"].values())
    card = CARD.format(
        license_id=config.license.lower() or "unknown",
        title=config.title or f"FlexIP adapter (title {NOT_STATED})",
        license=config.license or f"{NOT_STATED}: `license` of the run's config says nothing",
        changes="; ".join(changes) or "nothing",
        file=path.name,
        hash=tensors_hash({k: v.half() for k, v in tensors.items()}),
        step=found.step,
        steps=config.steps,
        seen=found.info["seen"],
        batch=config.batch,
        world=found.info["world"],
        accumulation=config.accumulation,
        ema=config.ema,
        alpha=adapter.alpha,
        beta=adapter.beta,
        gamma_spread=config.gamma_spread,
        dial=adapter.calibration_in_words + measured,
        base=_name(config.base),
        vae=f", with the VAE `{_name(config.vae)}`" if config.vae else "",
        encoders=names,
        start=_name(config.start),
        crop=config.references.crop,
        white=f"{config.references.white:.0%}",
        lr=config.lr,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        warmup=config.warmup,
        unreadable=found.info["unreadable"],
        skipped=found.info["skipped"],
        data=rows,
    )
    with atomic(path.parent / f"{path.stem}.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    return path


def largest_weight(tensors: Iterable[Tensor]) -> float:
    """The largest absolute value; NaN where there is one."""
    return float(torch.stack([value.detach().abs().max().float() for value in tensors]).max())


def _name(place: str | None) -> str:
    """A file's or folder's own name, because where it lay is nobody's business."""
    if place is None:
        return "new weights"
    return Path(place).name if Path(place).exists() else place
