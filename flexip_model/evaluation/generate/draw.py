"""`evaluate generate`: pictures with a manifest each; what is there is kept, so a run that was cut off goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.console import Progress
from ...common.device import pick_device
from ...common.errors import FlexIPError
from ...common.processes import Share
from ...encoders import ClipEncoder, Encoders, check_encoders, load_clip, load_dino, other_weights
from ...files.adapter_file import build_adapter, load_adapter_file
from ...files.ip_adapter import convert_ip_adapter
from ...files.safefile import atomic, read_header, sha256
from ...hosts.condition import Condition
from ...hosts.denoise import denoise
from ...hosts.diffusers import inject
from ...method.adapters import Adapter, ReferenceFeatures, create_adapter
from ...method.gate import gamma_tensor
from ..benchmarks.opening import open_benchmark
from ..reading import read_picture
from .base import load_base
from .plan import Job, batches, plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What the command line says; picklable, since processes get it.

    Attributes:
        benchmark, form: see `open_benchmark`.
        base, base_configs: see `load_base`.
        adapter: an adapter file of the pack or an IP-Adapter(-Plus) file; None for the base alone.
        clip, dino: the encoders' files.
        values: γ, or IP-Adapter's scale.
        steps, guidance: the paper's DDIM 50 and 7.5 (App. B.1).
        size: pixels of a side; None takes the base's own.
        crop: of the reference (`images.preprocess.CROPS`).
    """

    benchmark: str
    form: str
    base: Path
    base_configs: Path | None
    adapter: Path | None
    clip: Path | None
    dino: Path | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    strengths: tuple[float, ...]
    steps: int
    guidance: float
    size: int | None
    crop: str
    batch: int
    device: str
    out: Path


class Drawer:
    """A base with or without an adapter."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.base = load_base(settings.base, settings.base_configs)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.base.to(device, dtype)
        self.size = settings.size or self.base.size
        if self.size % self.base.scale:
            raise FlexIPError(f"--size is {self.size}; expected a multiple of {self.base.scale}")
        self.adapter: Adapter | None = None
        self.made_for: dict[str, Any] = {}
        if settings.adapter is not None:
            self._load_adapter(settings.adapter)
        self._features: dict[str, ReferenceFeatures] = {}

    @property
    def knob(self) -> str | None:
        """`gamma`; `scale` for an imported IP-Adapter, whose γ is its scale; None without an adapter."""
        if self.adapter is None:
            return None
        return "gamma" if self.adapter.has_personalization else "scale"

    def record(self) -> dict[str, Any]:
        """What a picture's manifest says of how it was drawn."""
        s = self.settings
        return {
            "base": self.base.hash,
            "adapter": sha256(s.adapter) if s.adapter else "",
            "steps": s.steps,
            "guidance": s.guidance,
            "size": self.size,
            "crop": s.crop,
            "sampler": "DDIM",
            **({"encoders": self.made_for} if self.made_for else {}),
        }

    def draw(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Pixels (3, S, S) in [0, 1] of jobs of one strength. A picture's noise hangs on its seed alone."""
        text = self.base.read([job.prompt for job in jobs] + [""] * len(jobs))
        side = self.size // self.base.scale
        noise = torch.stack(
            [torch.randn(4, side, side, generator=torch.Generator().manual_seed(job.seed)) for job in jobs]
        )
        host = None
        if self.adapter is not None:
            host = inject(self.base.unet, self.adapter)
            host.condition = self._condition(self.adapter, jobs, text)
        try:
            latents = denoise(
                self.base.unet,
                self.base.scheduler,
                noise.to(self.device),
                text,
                steps=self.settings.steps,
                guidance=self.settings.guidance,
            )
        finally:
            if host is not None:
                host.eject()
        return list(self.base.decode(latents))

    @torch.no_grad()
    def _condition(self, adapter: Adapter, jobs: Sequence[Job], text: Tensor) -> Condition:
        found = [self._reference(job) for job in jobs]
        null = self.encoders.null(len(jobs), type(adapter))
        features = ReferenceFeatures(
            torch.cat([*(f.cls for f in found), null.cls]).to(self.device),
            torch.cat([*(f.patches for f in found), null.patches]).to(self.device),
            _keep(found),
        )
        s = adapter.personalization(text.float(), features.cls) if adapter.has_personalization else None
        gammas = gamma_tensor([job.value for job in jobs] * 2).to(self.device)
        return Condition(adapter.preservation(features), s, gammas, jobs[0].strength)

    def _reference(self, job: Job) -> ReferenceFeatures:
        assert self.adapter is not None
        key = job.subject.id
        if key not in self._features:
            picture = read_picture(job.subject.reference)
            self._features[key] = self.encoders.encode(picture, crop=self.settings.crop, adapter=type(self.adapter))
        return self._features[key]

    def _load_adapter(self, path: Path) -> None:
        settings = self.settings
        if "flexip.format_version" in read_header(path).metadata:
            info, tensors = load_adapter_file(path)
            self.adapter, encoders = build_adapter(info, tensors), info.encoders
            if not info.trained:
                log.warning(f"warning: {path} was never trained: a bootstrap, whose pictures mean nothing")
        else:
            config, tensors, _ = convert_ip_adapter(path)
            self.adapter, encoders = create_adapter(config), {}
            self.adapter.load_state_dict(tensors)
        self.adapter.float().to(self.device).eval().requires_grad_(False)
        reads_dino = self.adapter.widths(self.adapter.config).dino_patches is not None
        if settings.clip is None or (reads_dino and settings.dino is None):
            lacking = "--clip FILE" + (" and --dino FILE" if reads_dino else "")
            raise FlexIPError(f"an adapter of kind {self.adapter.kind} needs its encoders: name {lacking}")
        clip: ClipEncoder = load_clip(settings.clip).float().to(self.device)
        dino = load_dino(settings.dino).float().to(self.device) if settings.dino and reads_dino else None
        check_encoders(self.adapter.config, clip, dino)
        for warning in other_weights(encoders, clip, dino):
            log.warning(f"warning: {warning}")
        self.encoders = Encoders(clip, dino)
        self.made_for = {"clip": clip.weights_hash} | ({"dino": dino.weights_hash} if dino else {})


def _keep(found: Sequence[ReferenceFeatures]) -> Tensor | None:
    """Which patches count, for the references and as many null images, of which all do; None where all do."""
    if all(features.keep is None for features in found):
        return None
    every = [torch.ones(f.patches.shape[:2], dtype=torch.bool, device=f.patches.device) for f in found]
    own = [one if f.keep is None else f.keep for f, one in zip(found, every, strict=True)]
    return torch.cat([*own, *every])


def generate(settings: Settings, share: Share) -> None:
    """Draw this process's share of the batches; what is in `out` with equal settings is kept.

    Raises:
        FlexIPError: whatever loading raises; a reference that cannot be read.
    """
    benchmark = open_benchmark(settings.benchmark, settings.form)
    device = pick_device(settings.device, share.local_rank)
    drawer = Drawer(settings, device)
    record = drawer.record()
    jobs = plan(benchmark, settings.seeds, drawer.knob, settings.values, settings.strengths)
    if len({job.file for job in jobs}) < len(jobs):
        raise FlexIPError("two pictures would get one name: give subjects ids, and knobs values, that differ more")
    own = batches(jobs, settings.batch)[share.rank :: share.world_size]
    todo = [batch for batch in own if not all(_done(settings.out, job, record) for job in batch)]
    count = sum(map(len, todo))
    progress = Progress(lambda done: f"{done} of {count} pictures", who=share.name, total=count, seconds=2.0)
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
