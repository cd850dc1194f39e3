"""What the captions of a data folder are like after `data caption`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..format import Dataset

NAMED = 5
"""Frames or groups that a report names."""


@dataclass
class CaptionReport:
    """What the index holds after captioning.

    Attributes:
        frames: how many there are.
        without: how many of them have no caption; `first_without` names a few.
        groups: how many groups have several captioned frames.
        repeats: how many of these have one text under several frames; `first_repeats` names a few.
    """

    frames: int = 0
    without: int = 0
    groups: int = 0
    repeats: int = 0
    first_without: list[str] = field(default_factory=list)
    first_repeats: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        found = [f"{self.frames - self.without} of {self.frames} frames have a caption"]
        if self.without:
            found.append(f"{self.without} frames have none, such as {', '.join(self.first_without)}")
        if self.repeats:
            found.append(
                f"in {self.repeats} of {self.groups} groups with several captioned frames one text stands "
                f"under more than one of them, such as in {', '.join(self.first_repeats)}"
            )
        return found


def review(folder: Path) -> CaptionReport:
    """Count frames without a caption and groups that repeat one."""
    report = CaptionReport()
    for table in Dataset.open(folder).tables.values():
        for batch in table.select(["group_id", "frames"]).to_batches():
            for name, frames in zip(batch.column(0).to_pylist(), _brief(batch.column(1)), strict=True):
                texts = Counter(text for _, captions in frames for text in set(captions))
                bare = [frame_id for frame_id, captions in frames if not captions]
                report.frames += len(frames)
                report.without += len(bare)
                report.first_without += bare[: NAMED - len(report.first_without)]
                if len(frames) - len(bare) > 1:
                    report.groups += 1
                    if max(texts.values()) > 1:
                        report.repeats += 1
                        report.first_repeats += [name][: NAMED - len(report.first_repeats)]
    return report


def _brief(frames: Any) -> Iterator[list[tuple[str, list[str]]]]:
    """Id and captions of the frames of each group, and nothing else of them."""
    flat = frames.flatten()
    pairs = list(zip(flat.field("frame_id").to_pylist(), flat.field("captions").to_pylist(), strict=True))
    start = 0
    for length in frames.value_lengths().to_pylist():
        yield [(name, captions or []) for name, captions in pairs[start : start + length]]
        start += length
