"""`data pack`: a source in some layout becomes one dataset of a data folder; a second run goes on after a kill."""

from __future__ import annotations

import logging
from dataclasses import KW_ONLY, asdict, dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from ...common.console import Progress
from ...common.errors import FlexIPError
from ...common.processes import Share, given_share
from ...common.signals import StopRequest, noted_stop
from ..format.schema import NewGroup
from ..format.shards import MAX_BYTES, ShardWriter
from .heldout import keep_apart
from .layouts import Choice, Item, Layout, find_layout
from .loading import LoadedItem, load_all
from .report import NAMED, Tally, check_broken, left, log_report, some
from .split import NEAR, KeptOut, enough, read_excluded, split_of

log = logging.getLogger(__name__)
SHORT_SIDE = 640
"""The shorter side in pixels (our choice): room for a crop to the subject at the paper's 512 px (App. B.1)."""
REPORT_SECONDS = 30.0
FEW = 100
"""Pictures that must have been seen before the share of broken ones can end a run early."""


@dataclass(frozen=True)
class PackTask:
    """What `data pack` does with a source; the command line's help says what each one means."""

    layout: str
    source: Path
    folder: Path
    name: str
    _: KW_ONLY
    license: str = ""
    quality: str = ""
    val: float = 0.01
    heldout: float = 0.0
    exclude: tuple[Path, ...] = ()
    near: int = NEAR
    short_side: int = SHORT_SIDE
    min_side: int = 64
    choice: Choice = field(default_factory=Choice)
    broken: float = 0.05
    processes: int = 1
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.heldout < 1 and self.val + self.heldout <= 1):
            raise FlexIPError("--val and --heldout are shares from 0 to 1, together at most 1")
        if not 0 <= self.broken <= 1:
            raise FlexIPError("--broken is a share from 0 to 1")
        if not 1 <= self.min_side <= self.short_side:
            raise FlexIPError("--min-side is at least 1 pixel and at most --short-side")
        if self.processes < 1 or self.choice.views < 2 or self.max_bytes < 1:
            raise FlexIPError("--processes takes at least 1, --views at least 2, --shard-megabytes more than 0")
        if not self.source.is_dir():
            raise FlexIPError(f"SOURCE {self.source} is no folder")
        if self.folder.resolve().is_relative_to(self.source.resolve()):
            raise FlexIPError(
                f"DATA {self.folder} lies in SOURCE {self.source}, which is only read; name a folder outside of it"
            )


def pack(task: PackTask) -> Tally:
    """Make a dataset, or this process's share of it: an equal run of the source's items, one after another.

    Raises:
        FlexIPError: the source is not in the layout, too much of it is unreadable, the dataset exists, an unfinished
            run had other options, or the disk is full.
    """
    layout = find_layout(task.layout)
    kept_out = read_excluded(task.exclude, task.near)
    license = task.license or layout.license
    share = given_share()
    log.info(f"{share.name}packing {layout.name}, license: {license}")
    note = f"layout {layout.name}"
    writer = ShardWriter(task.folder, task.name, license, note, max_bytes=task.max_bytes, share=share)
    told = f"{share.name}this share of {task.name!r} is packed; with all of them in {task.folder}, run "
    told += f"`python -m flexip_model data merge {task.folder} {task.name}`"
    # Machines may have the excluded pictures, and the source, in different places.
    options = {**_fingerprint(task), "exclude": kept_out.digest()}
    try:
        done = writer.done
        if done is not None:
            _same_options(writer, done["options"], {**options, "source": done["options"]["source"]})
            writer.abandon()
            log.info(told)
            return Tally()
        # A launcher passes on the signals that its terminal has sent already.
        with noted_stop(second_ends=share.world_size == 1) as stop:
            tally, digest = _write_groups(writer, layout, task, kept_out, stop=stop, share=share)
        if share.world_size > 1:
            record = {"options": options, "broken": task.broken, "source": digest, "tally": asdict(tally)}
            writer.finish_share(record)
            log.info(told)
        else:
            log_report(tally, writer, *keep_apart(writer, task.near))
    except BaseException:
        writer.abandon()
        raise
    for why, names in left(layout, task.source) if share.rank == 0 else ():
        log.info(f"  not taken, {why}: {some(names)}")
    return tally


def _survey(layout: Layout, source: Path) -> tuple[int, str]:
    """How many items there are, and a digest of their names: all processes that share them must see the same."""
    digest, count = blake2b(digest_size=16), 0
    for item in layout.items(source):
        digest.update(item.key.encode() + b"\0")
        count += 1
    return count, digest.hexdigest()


def _write_groups(
    writer: ShardWriter, layout: Layout, task: PackTask, kept_out: KeptOut, *, stop: StopRequest, share: Share
) -> tuple[Tally, str]:
    key = _fingerprint(task)
    every, digest = _survey(layout, task.source)
    start, end = (every * rank // share.world_size for rank in (share.rank, share.rank + 1))
    total = end - start
    tally, items = Tally(), islice(layout.items(task.source), start, end)
    if share.world_size > 1:
        key["items"] = digest
    if writer.resumed is not None:
        before = writer.resumed["options"]
        _same_options(writer, before, _fingerprint(task))
        tally = Tally(**writer.resumed["tally"])
        last = next(islice(items, tally.items - 1, None), None)
        if last is None or last.key != writer.resumed["last"] or before.get("items", digest) != digest:
            raise FlexIPError(
                f"{task.source} changed since the unfinished run of {writer.dataset!r}: put it back, or {_anew(writer)}"
            )
        log.info(f"going on after {tally.items:,} of the source's items, {writer.groups:,} groups")
    progress = Progress(
        lambda items: f"{items:,} of {total:,} items, {writer.groups:,} groups, {writer.frames:,} frames",
        who=share.name,
        unit="items",
        total=total,
        seconds=REPORT_SECONDS,
        place=share.local_rank,
    )
    progress.skip(tally.items)
    for item, result in load_all(
        layout.name,
        items,
        choice=task.choice,
        short_side=task.short_side,
        min_side=task.min_side,
        processes=task.processes,
    ):
        tally.items += 1
        tally.pictures += result.pictures
        tally.broken += len(result.broken)
        tally.small += result.small
        tally.unmasked += len(result.unmasked)
        tally.named += result.broken[: max(0, NAMED - len(tally.named))]
        tally.masks += result.unmasked[: max(0, NAMED - len(tally.masks))]
        groups = _groups(item, result, layout, task=task, kept_out=kept_out, tally=tally)
        writer.add(groups, {"options": key, "last": item.key, "tally": asdict(tally)})
        if tally.pictures >= FEW:
            check_broken(tally, task.broken)
        if stop.number:
            writer.flush()
            log.info(f"stopped after {writer.groups:,} groups; the same command goes on from there")
            raise SystemExit(128 + stop.number)
        progress.add(1)
    if not writer.groups and (share.world_size == 1 or not every):
        raise FlexIPError(_nothing(layout, task, tally))
    writer.flush()
    if share.world_size == 1:  # of a share of few pictures it says nothing; `merge` looks at all of them
        check_broken(tally, task.broken)
    return tally, digest


def _groups(
    item: Item, result: LoadedItem, layout: Layout, *, task: PackTask, kept_out: KeptOut, tally: Tally
) -> list[NewGroup]:
    split = split_of(item.split_key, task.heldout, task.val)
    groups = []
    for suffix, frames in result.groups:
        kept = [frame for frame, source in frames if not kept_out.has(frame, source)]
        tally.kept_out += len(frames) - len(kept)
        if enough(layout.kind, [frame.role for frame in kept]):
            groups.append(
                NewGroup(
                    item.key + suffix,
                    layout.kind,
                    tuple(kept),
                    split,
                    quality=task.quality or item.quality or layout.quality,
                )
            )
            tally.splits[split] += 1
    tally.no_group += not groups
    if not groups and not result.broken:
        tally.groupless += [item.key][: NAMED - len(tally.groupless)]
    return groups


def _fingerprint(task: PackTask) -> dict[str, Any]:
    values = asdict(task)
    for name in ("folder", "name", "processes", "broken", "max_bytes"):
        del values[name]
    values["source"] = str(task.source.resolve())
    values["exclude"] = [str(path.resolve()) for path in task.exclude]
    return values


def _same_options(writer: ShardWriter, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            raise FlexIPError(
                f"an unfinished run of {writer.dataset!r} had {name} {before.get(name)!r} and this one "
                f"has {value!r}: repeat it as it was, or {_anew(writer)}"
            )


def _anew(writer: ShardWriter) -> str:
    return f"delete {writer.index.with_suffix('.parts')} to begin anew"


def _nothing(layout: Layout, task: PackTask, tally: Tally) -> str:
    if not tally.items:
        lost = "".join(f"; {len(names):,} {why}: {some(names)}" for why, names in left(layout, task.source))
        return f"{task.source} holds nothing in the layout {layout.name}, which is: {layout.expects}{lost}"
    what = (
        f"{tally.items:,} items gave no group: {tally.broken:,} unreadable, {tally.small:,} under --min-side, "
        f"{tally.kept_out:,} kept out"
    )
    if layout.kind == "video":
        what += (
            "; frames of one shot have to be --gap of the video's length apart and inside the --similarity band "
            "(--gap-of shot helps with short shots in long videos)"
        )
    return what + (f"; such as {tally.named[0]}" if tally.named else "")
