"""`evaluate generate`: pictures with a manifest each; what is there is kept, so a run that was cut off goes on."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.console import Progress
from ...common.device import pick_device
from ...common.errors import FlexIPError
from ...common.processes import Share
from ...files.safefile import atomic
from ..benchmarks.opening import open_benchmark
from ..reading import why_unreadable
from .drawer import Drawer, Files, Sampling
from .plan import Job, batches, plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What the command line says; picklable, since processes get it.

    Attributes:
        benchmark, form: see `open_benchmark`.
        values: γ, or IP-Adapter's scale.
        batch: pictures at once.
    """

    benchmark: str
    form: str
    files: Files
    sampling: Sampling
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    strengths: tuple[float, ...]
    batch: int
    device: str
    out: Path


def generate(settings: Settings, share: Share) -> None:
    """Draw this process's share of the batches; what is in `out` with equal settings is kept.

    What is wrong with the benchmark is said, and a subject whose reference cannot be read is left out: `score` counts
    its pictures as missing.

    Raises:
        FlexIPError: whatever loading raises; none of the references can be read.
    """
    benchmark = open_benchmark(settings.benchmark, settings.form)
    if share.rank == 0:
        for problem in benchmark.problems:
            log.warning(f"problem: {problem}")
    device = pick_device(settings.device, share.local_rank)
    drawer = Drawer(settings.files, settings.sampling, device)
    if drawer.one_value and settings.strengths != (1.0,):
        raise FlexIPError("diffusers' own IP-Adapter has a scale and no strength; leave --strengths out")
    record = drawer.record()
    jobs = plan(benchmark, settings.seeds, drawer.knob, settings.values, settings.strengths)
    if len({job.file for job in jobs}) < len(jobs):
        raise FlexIPError("two pictures would get one name: give subjects ids, and knobs values, that differ more")
    own = batches(jobs, settings.batch, drawer.one_value)[share.rank :: share.world_size]
    if drawer.addition is not None:
        lost = {subject.id for subject in benchmark if why_unreadable(subject.reference)}
        if len(lost) == len(benchmark):
            raise FlexIPError(f"none of the references of the benchmark {benchmark.name} can be read")
        own = [kept for batch in own if (kept := [job for job in batch if job.subject.id not in lost])]
    todo = [batch for batch in own if not all(_done(settings.out, job, record) for job in batch)]
    count = sum(map(len, todo))
    progress = Progress(
        lambda done: f"{done} of {count} pictures", who=share.name, total=count, seconds=2.0, place=share.local_rank
    )
    for batch in todo:
        for job, pixels in zip(batch, drawer.draw(batch), strict=True):
            _save(settings.out, job, pixels, record)
        progress.add(len(batch))


def _save(out: Path, job: Job, pixels: Tensor, record: dict[str, Any]) -> None:
    """The picture, then its manifest: a picture with a manifest is whole."""
    from PIL import Image

    if not bool(torch.isfinite(pixels).all()):
        raise FlexIPError(f"the picture {job.file} has NaN values; draw on a device with float32")
    data = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    with atomic(out / job.file) as path:
        Image.fromarray(data).save(path, "PNG")
    with atomic((out / job.file).with_suffix(".json")) as path:
        path.write_text(json.dumps(job.manifest() | record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _done(out: Path, job: Job, record: dict[str, Any]) -> bool:
    path = out / job.file
    try:
        kept = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if kept != json.loads(json.dumps(job.manifest() | record)):
        raise FlexIPError(
            f"{path} was drawn with other settings, weights or prompts; name another --out, or move that folder away"
        )
    return path.is_file()
