"""`data cache`: every frame of a data folder through the frozen networks, shard by shard."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.console import Progress
from ...common.device import pick_device
from ...common.errors import FlexIPError
from ...common.prefetch import load_batches
from ...common.processes import Share, run_shares
from ...files.tensorfile import TensorFile
from ..format import Dataset, Frame
from ..format.walk import ShardRows, count_frames, list_shards, read_frames, stamp
from .makers import LatentMaker, Maker, Views, all_names, load_makers
from .manifest import MANIFEST, cache_file, read_manifest, tensor_name, write_manifest
from .marks import FRAMES_STAMP, finished_names, mark_caches

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REPORT_SECONDS = 20.0
NAMED = 5
"""Frames with complaints that are named."""


@dataclass(frozen=True)
class CacheTask:
    """What `data cache` is told.

    Attributes:
        folder: the data folder.
        vae, clip, dino: where the networks are; None leaves that cache out.
        vae_configs: for a VAE in a single file (`makers.load_vae`).
        size: the side of the targets in pixels.
        buckets: step and limit of `buckets.bucket_sizes`, for targets that are not square; None for squares.
        crop: how references are cropped (`preprocess.prepare`).
        flips: whether mirrored pictures are cached too.
        batch: pictures per call of a network.
        device, dtype: what the networks compute on and in; `auto` takes a GPU where there is one.
        threads: how many decode pictures, per process.
    """

    folder: Path
    vae: str | None = None
    clip: str | None = None
    dino: str | None = None
    _: KW_ONLY
    vae_configs: str | None = None
    size: int = 512
    buckets: tuple[int, float] | None = None
    crop: str = "pad"
    flips: bool = False
    batch: int = 16
    device: str = "auto"
    dtype: str = "float32"
    threads: int = 4


def make_caches(task: CacheTask, processes: int = 1) -> None:
    """Make the caches of all datasets or go on with them, and note in the index which frames they hold.

    Finished shards are kept, and of a shard that was interrupted all but the last batch.

    Raises:
        FlexIPError: a wrong path or size, a cache begun in another dtype, a full disk, a process that was killed.
    """
    if min(task.threads, task.batch, processes) < 1:
        raise FlexIPError("--batch, --threads and --processes must be at least 1")
    Dataset.open(task.folder)
    run_shares(_work, task, processes)


def _work(task: CacheTask, share: Share) -> None:
    """Do one process's part: every `world_size`-th shard. The last to finish brings the index up to date."""
    device, dtype = pick_device(task.device, share.local_rank), DTYPES[task.dtype]
    makers = load_makers(
        task.vae,
        task.clip,
        task.dino,
        size=task.size,
        crop=task.crop,
        flips=task.flips,
        vae_configs=task.vae_configs,
        buckets=task.buckets,
    )
    for maker in makers:
        _begin(task, maker)
        # Not the module's own `to`: that of diffusers warns of a cast that is meant.
        torch.nn.Module.to(maker.module, device, dtype)
    dataset = Dataset.open(task.folder)
    places = [(table, rows) for table in dataset.tables.values() for rows in list_shards(table)]
    own, finished = places[share.rank :: share.world_size], 0
    progress = Progress(
        lambda frames: f"{finished} of {len(own)} shards, {frames} frames done",
        who=share.name,
        unit="frames",
        total=sum(count_frames(table, rows) for table, rows in own),
        seconds=REPORT_SECONDS,
        place=share.local_rank,
    )
    for table, rows in own:
        try:
            _encode_shard(task, dataset, makers, table=table, rows=rows, progress=progress)
        except torch.OutOfMemoryError as error:
            raise FlexIPError(
                f"{device} is out of memory with --batch {task.batch}; run the same command again with "
                f"--batch {max(1, task.batch // 2)}, it goes on where it stopped"
            ) from error
        finished += 1
    progress.say()
    if progress.complaints:
        log.info(f"{len(progress.complaints)} frames with complaints, the first:")
    for text in progress.complaints[:NAMED]:
        log.info(f"  {text}")
    for maker in makers:
        if isinstance(maker, LatentMaker) and maker.noise is not None:
            noise = f"{100 * maker.noise:.2g} %"
            log.info(f"the VAE's own noise, which is left out, is {noise} of the latents' deviation")
    if all(cache_file(task.folder, maker.manifest.key, rows.shard).exists() for _, rows in places for maker in makers):
        counts = mark_caches(task.folder)
        for maker in makers:
            log.info(f"{maker.manifest.key}: {counts[maker.manifest.key]} frames in the index")


def _begin(task: CacheTask, maker: Maker) -> None:
    """Write the cache's manifest, or check that the one that is there was begun in the same dtype."""
    folder = task.folder / "caches" / maker.manifest.key
    if (folder / MANIFEST).exists():
        _, more = read_manifest(folder)
        if more.get("dtype") != task.dtype:
            raise FlexIPError(
                f"{folder} was begun in {more.get('dtype')}; go on with --dtype {more.get('dtype')}, or delete it"
            )
        return
    write_manifest(folder, maker.manifest, {"network": maker.name, "dtype": task.dtype, "stored": "float16"})


def _encode_shard(
    task: CacheTask, dataset: Dataset, makers: Sequence[Maker], *, table: Any, rows: ShardRows, progress: Progress
) -> None:
    wanted = stamp(table, rows)
    paths = {id(maker): cache_file(task.folder, maker.manifest.key, rows.shard) for maker in makers}
    missing = [maker for maker in makers if finished_names(paths[id(maker)], wanted) is None]
    if not missing:
        progress.skip(count_frames(table, rows))
        return
    frames = read_frames(table, rows)
    ids = [frame.frame_id for frame in frames]
    files: list[tuple[Maker, TensorFile]] = []
    try:
        for maker in missing:
            files.append((maker, TensorFile(paths[id(maker)], all_names(ids), {FRAMES_STAMP: wanted})))
        todo = [frame for frame in frames if any(frame.frame_id not in file.done for _, file in files)]
        progress.skip(len(frames) - len(todo))
        for loaded in load_batches(partial(_load, dataset, missing), todo, task.batch, task.threads):
            for number, (maker, file) in enumerate(files):
                _add(maker, number, file, loaded, batch=task.batch)
            for _, file in files:
                file.flush()
            complaints = [f"{entry.frame.frame_id} {entry.complaint}" for entry in loaded if entry.complaint]
            progress.add(len(loaded), complaints)
        for _, file in files:
            file.close()
    finally:
        for _, file in files:
            file.abandon()


@dataclass
class _Loaded:
    """A frame ready for the networks, with what each maker wants of it; without views it could not be read."""

    frame: Frame
    views: list[Views] = field(default_factory=list)
    complaint: str = ""


def _load(dataset: Dataset, makers: Sequence[Maker], frame: Frame) -> _Loaded:
    try:
        picture, values = dataset.picture(frame), dataset.mask(frame)
        mask = None if values is None else torch.from_numpy(values)
        views = [maker.views(picture, mask, frame) for maker in makers]
    except (FlexIPError, OSError, ValueError, SyntaxError) as error:
        return _Loaded(frame, complaint=f"left out: {error}")
    return _Loaded(frame, views, next((f"{view.complaint}; only as it is" for view in views if view.complaint), ""))


def _alike(pixels: Mapping[str, Tensor], batch: int) -> list[list[str]]:
    """Names of pictures of one size, at most `batch` at a time."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, value in pixels.items():
        by_shape.setdefault(tuple(value.shape), []).append(name)
    return [names[at : at + batch] for names in by_shape.values() for at in range(0, len(names), batch)]


@torch.no_grad()
def _add(maker: Maker, number: int, file: TensorFile, loaded: Sequence[_Loaded], *, batch: int) -> None:
    """Encode what the file lacks of these frames, and append it in fp16."""
    like = next(maker.module.parameters())
    todo = [entry for entry in loaded if entry.views and entry.frame.frame_id not in file.done]
    pixels = {
        tensor_name(entry.frame.frame_id, variant): value
        for entry in todo
        for variant, value in entry.views[number].pixels.items()
    }
    found = dict[str, Tensor]()
    for part in _alike(pixels, batch):
        codes = maker.encode(torch.stack([pixels[name] for name in part]).to(like.device, like.dtype)).half().cpu()
        if not bool(torch.isfinite(codes).all()):
            raise FlexIPError(
                f"{maker.name} gives values that are not finite in half precision; with --dtype float16 "
                "try bfloat16 or float32, else the weights are damaged"
            )
        found |= zip(part, codes, strict=True)
    for entry in todo:
        view = entry.views[number]
        rows = {tensor_name(entry.frame.frame_id, v): value for v, value in view.kept.items()}
        rows |= {name: found[name] for name in (tensor_name(entry.frame.frame_id, v) for v in view.pixels)}
        # The plain one comes last: where it is, a kill has lost no variant of the frame.
        for name in sorted(rows, key=lambda name: (name == entry.frame.frame_id, name)):
            file.add(name, rows[name])
