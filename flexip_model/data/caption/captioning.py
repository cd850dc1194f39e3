"""`data caption`: each frame gets a caption of its own, as Qwen2-VL wrote them for the paper (§4.1).

What is finished is kept (`captionlog`), and goes into the index at the end and whenever the command is stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...common.console import Progress
from ...common.device import pick_device
from ...common.errors import FlexIPError
from ...common.prefetch import load_batches
from ...common.processes import Share, given_share, run_shares
from ...common.signals import sigterm_interrupts
from ..format import Dataset, Frame
from ..format.captions import shared_frames
from ..format.walk import ShardRows, count_frames, list_shards, read_frames, rewrite_frames
from .captioners import CAPTIONERS, FORMS, Captioner, CaptionerChoice, FileCaptioner
from .captionlog import Entry, ShardLog, read_captions_of, remove_logs
from .captionreport import CaptionReport, review
from .captiontext import shorten, tidy

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REPORT_SECONDS = 20.0
NAMED = 5
"""Frames that could not be read that are named."""


@dataclass(frozen=True)
class CaptionTask:
    """What `data caption` is told.

    Attributes:
        folder: the data folder.
        captioner: one of `captioners.CAPTIONERS`.
        model, captions, download, form: see `captioners.CaptionerChoice`.
        batch: pictures at a time.
        device, dtype: what the model computes on and in; `auto` takes a GPU where there is one, and bfloat16 on it.
        threads: how many decode pictures, per process.
        again: caption anew what has captions already; otherwise such frames are left alone,
        keep_shared: also those of a variant group whose frames all have the same ones, as those of a clip do; they
            are replaced unless this is set, because §4.1 of the paper wants one of its own for each frame.
    """

    folder: Path
    captioner: str = "qwen2-vl"
    model: str | None = None
    _: KW_ONLY
    captions: Path | None = None
    download: bool = False
    batch: int = 16
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 4
    form: str = "detailed"
    again: bool = False
    keep_shared: bool = False


def caption(task: CaptionTask, processes: int = 1) -> CaptionReport:
    """Caption what has no caption of its own, and put the captions into the index, also when stopped (Ctrl-C, SIGTERM).

    Raises:
        FlexIPError: no such captioner, model or file; a full disk; a process that was killed.
        KeyboardInterrupt: stopped; what was finished is in the index.
    """
    if min(task.batch, task.threads, processes) < 1:
        raise FlexIPError("--batch, --threads and --processes must be at least 1")
    if task.form not in FORMS:
        raise FlexIPError(f"there is no form {task.form!r} of captions; choose one of {', '.join(FORMS)}")
    if task.captioner not in CAPTIONERS:
        raise FlexIPError(f"there is no captioner {task.captioner!r}; choose one of {', '.join(CAPTIONERS)}")
    dataset, share = Dataset.open(task.folder), given_share()
    with sigterm_interrupts():
        try:
            run_shares(_work, task, processes)
            while share.world_size > 1 and share.rank == 0 and not _is_complete(task, dataset):
                time.sleep(5)
        finally:
            # Of several that torchrun started the first one does it, so that no two rewrite an index at once.
            if share.rank == 0:
                _merge(task, dataset)
    return review(task.folder)


@dataclass
class _Told:
    """What a process's captioner said.

    Attributes:
        found: frames that it captioned.
        cut: captions that were too long.
        last: the id of the frame that it saw last.
    """

    found: int = 0
    cut: int = 0
    last: str = ""


def _work(task: CaptionTask, share: Share) -> None:
    """Do one process's part: every `world_size`-th shard."""
    dataset = Dataset.open(task.folder)
    told = _Told()
    own = _shards(dataset)[share.rank :: share.world_size]
    progress = Progress(
        lambda done: f"{done} frames seen, {told.found} captioned, {told.cut} captions cut to fit",
        who=share.name,
        unit="frames",
        total=sum(count_frames(table, rows) for _, table, rows in own),
        seconds=REPORT_SECONDS,
        place=share.local_rank,
    )
    captioner: Captioner | None = None
    for name, table, rows in own:
        shard_log = ShardLog(task.folder, name, rows.shard, _writer(task))
        if shard_log.is_finished():
            progress.skip(count_frames(table, rows))
            continue
        every = read_frames(table, rows)
        wanted = {frame.frame_id for frame in every if task.again or not frame.captions} | shard_log.unanswered()
        if not task.keep_shared:
            wanted |= shared_frames(table, rows)
        wanted -= shard_log.seen()
        shard_log.plan(wanted)
        frames = [frame for frame in every if frame.frame_id in wanted]
        progress.skip(len(every) - len(frames))
        try:
            if frames and captioner is None:
                captioner = _captioner(task, share)
            if captioner is not None:
                load = partial(_load, dataset, captioner.looks)
                for loaded in load_batches(load, frames, task.batch, task.threads):
                    shard_log.add(_ask(captioner, loaded, task, told))
                    progress.add(len(loaded), [complaint for _, _, complaint in loaded if complaint])
            shard_log.finish()
        finally:
            shard_log.close()
    if progress.done:
        progress.say()
    for text in progress.complaints[:NAMED]:
        log.info(f"  left out: {text}")
    if isinstance(captioner, FileCaptioner) and share.world_size == 1 and not told.found:
        raise FlexIPError(
            f"{task.captions} names none of the frames, its first is {next(iter(captioner.captions))!r}; "
            f"expected frame ids, the tar members' names, such as {told.last!r}"
        )


def _captioner(task: CaptionTask, share: Share) -> Captioner:
    device = pick_device(task.device, share.local_rank)
    return CAPTIONERS[task.captioner](
        CaptionerChoice(
            task.captioner,
            task.model,
            file=task.captions,
            device=device,
            dtype=DTYPES[task.dtype],
            download=task.download,
            form=task.form,
        )
    )


def _load(dataset: Dataset, looks: bool, frame: Frame) -> tuple[Frame, Image | None, str]:
    """Return a frame, its picture where it is wanted, and why there is none."""
    try:
        return frame, dataset.picture(frame) if looks else None, ""
    except FlexIPError as error:
        return frame, None, str(error)


def _ask(
    captioner: Captioner, loaded: Sequence[tuple[Frame, Image | None, str]], task: CaptionTask, told: _Told
) -> list[Entry]:
    good = [(frame, picture) for frame, picture, complaint in loaded if not complaint]
    try:
        texts = captioner([f for f, _ in good], [p for _, p in good if p is not None]) if good else []
    except torch.OutOfMemoryError as error:
        raise FlexIPError(
            f"the GPU is out of memory with --batch {task.batch}; run the same command again with "
            f"--batch {max(1, task.batch // 2)}, it goes on where it stopped"
        ) from error
    entries: list[Entry] = [(frame.frame_id, None) for frame, _, complaint in loaded if complaint]
    for (frame, _), text in zip(good, texts, strict=True):
        whole = tidy(text or "")
        fitting = shorten(whole, FORMS[task.form].tokens)
        told.cut += fitting != whole
        told.found += bool(fitting)
        entries.append((frame.frame_id, fitting or None))
    told.last = loaded[-1][0].frame_id
    return entries


def _shards(dataset: Dataset) -> list[tuple[str, Any, ShardRows]]:
    return [(name, table, rows) for name, table in dataset.tables.items() for rows in list_shards(table)]


def _writer(task: CaptionTask) -> dict[str, object]:
    """Who captions; a file that has changed since is another writer."""
    file = None
    if task.captions is not None and task.captions.exists():
        status = task.captions.stat()
        file = [str(task.captions), status.st_size, status.st_mtime_ns]
    return {
        "captioner": task.captioner,
        "model": task.model,
        "file": file,
        "form": task.form,
        "again": task.again,
        "shared": task.keep_shared,
    }


def _is_complete(task: CaptionTask, dataset: Dataset) -> bool:
    writer = _writer(task)
    return all(ShardLog(task.folder, name, rows.shard, writer).is_finished() for name, _, rows in _shards(dataset))


def _merge(task: CaptionTask, dataset: Dataset) -> None:
    """Put what is finished into the index; the logs go when all of it is."""
    complete = _is_complete(task, dataset)
    changed = {name for name, _, rows in _shards(dataset) if read_captions_of(task.folder, name, rows.shard)}
    for name in sorted(changed):
        captions = lru_cache(maxsize=8)(partial(read_captions_of, task.folder, name))

        def change(frame_id: str, shard: str, old: list[str], captions: Any = captions) -> list[str]:
            text = captions(shard).get(frame_id)
            return [text] if text else old

        rewrite_frames(task.folder, name, "captions", change)
    if complete:
        for name in dataset.names:
            remove_logs(task.folder, name)
