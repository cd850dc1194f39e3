"""What became of a source, counted while it is packed and told at the end."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...common.errors import FlexIPError
from ..format.schema import SPLITS
from ..format.shards import ShardWriter
from ..format.shared_dataset import SharedDataset
from .layouts import Layout

log = logging.getLogger(__name__)
NAMED = 20
"""Unreadable files that the report names."""


@dataclass
class Tally:
    """What became of a source's pictures; it is kept with every shard, so that a resumed run reports all of it.

    Attributes:
        items: things of the source that were read.
        pictures: pictures and videos that were opened.
        broken: how many of these are unreadable; `named` has the first few with the reason.
        small: pictures under `--min-side`.
        kept_out: pictures that `--exclude` names, or copies of them.
        unmasked: pictures whose mask marks nothing, packed without it; `masks` has the first few.
        no_group: items without a group: too few pictures left, or a video without two frames that fit; `groupless`
            has the first few.
        splits: groups of each split.
    """

    items: int = 0
    pictures: int = 0
    broken: int = 0
    small: int = 0
    kept_out: int = 0
    unmasked: int = 0
    no_group: int = 0
    named: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    groupless: list[str] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    def join(self, other: Tally) -> None:
        """Add what another process counted."""
        for name, value in asdict(other).items():
            mine = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, {split: mine[split] + count for split, count in value.items()})
            else:
                setattr(self, name, (mine + value)[:NAMED] if isinstance(value, list) else mine + value)


def check_broken(tally: Tally, allowed: float, remedy: str = "mend or remove them, or allow more") -> None:
    """Refuse a source of which too much cannot be read.

    Raises:
        FlexIPError: more than the share `allowed` of its pictures is broken.
    """
    if tally.broken > allowed * tally.pictures:
        first = "; ".join(tally.named[:3])
        raise FlexIPError(
            f"{tally.broken:,} of {tally.pictures:,} pictures or videos cannot be read, more than the "
            f"{allowed:.0%} that --broken allows, such as {first}; {remedy}"
        )


def log_report(tally: Tally, writer: ShardWriter | SharedDataset, own: int, others: int) -> None:
    """Log what was packed, what was left out, and why."""
    log.info(f"{writer.dataset}: {writer.groups:,} groups, {writer.frames:,} frames from {tally.items:,} items")
    log.info("  groups by split: " + ", ".join(f"{name} {count:,}" for name, count in tally.splits.items()))
    for what, count, names in (
        ("unreadable", tally.broken, tally.named),
        ("packed without their mask", tally.unmasked, tally.masks),
        ("smaller than --min-side", tally.small, []),
        ("kept out by --exclude, the same file or a near copy", tally.kept_out, []),
        ("left out of the index, copies of a held-out or validation picture", own, []),
        ("taken out of other datasets' indexes, copies of one of this dataset's", others, []),
        ("items without a group (too few pictures, or no two frames that fit)", tally.no_group, tally.groupless),
    ):
        if count:
            log.info(f"  {what}: {count:,}")
        for line in names:
            log.info(f"    {line}")


def left(layout: Layout, source: Path) -> list[tuple[str, list[str]]]:
    """What the layout takes no notice of, by the reason."""
    return [(why, names) for why, names in layout.left_out(source).items() if names]


def some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
