"""A run's folder: what was scored, with what, and a line per score, appended as it is made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...common.errors import FlexIPError
from ...files.safefile import atomic

RUN, PICTURES, SCORES, SWEEPS = "run.json", "pictures.jsonl", "scores.jsonl", "sweeps.jsonl"
Entry = dict[str, Any]


class Lines:
    """A file of JSON lines that grows; each line is whole or is not there.

    A process that is killed while it writes leaves half a line at the end, which the next one cuts off.

    Attributes:
        entries: by their keys; a later line of the same key counts.
    """

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self.path, self.keys = path, keys
        self.entries: dict[tuple[Any, ...], Entry] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                with path.open("rb+") as file:
                    file.truncate(len(whole))
            # Not `splitlines`: a prompt may hold one of the other signs that it takes for a line's end.
            for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
                self._take(line, number)

    def add(self, entries: Iterable[Entry]) -> None:
        """Append entries and wait until they are on the disk."""
        text = ""
        for entry in entries:
            self.entries[self.key(entry)] = entry
            text += as_line(entry)
        try:
            with self.path.open("ab") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FlexIPError(
                f"{self.path} cannot be written ({error.strerror or error}); free some space and run the same command "
                "again, what is finished is kept"
            ) from error

    def finish(self, wanted: Iterable[tuple[Any, ...]]) -> None:
        """Write the wanted entries anew in the order of their keys, whole or not at all; others go."""
        kept = {key: self.entries[key] for key in sorted(wanted) if key in self.entries}
        with atomic(self.path) as path:
            path.write_text("".join(as_line(entry) for entry in kept.values()), encoding="utf-8")
        self.entries = kept

    def key(self, entry: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(entry[name] for name in self.keys)

    def _take(self, line: str, number: int) -> None:
        try:
            entry = json.loads(line)
            self.entries[self.key(entry)] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise FlexIPError(
                f"{self.path}, line {number} is damaged ({error}); take that line out and run the same command again"
            ) from error


def as_line(entry: Mapping[str, Any]) -> str:
    """One line of JSON; NaN is refused, since JSON has none."""
    return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")


class Run:
    """A scored run, read.

    Attributes:
        record: benchmark, methods and metrics with their definitions and weights.
        pictures: method and id to what is known of the picture.
        scores: lines with `method`, `picture`, `metric`, `score` (None for NaN) and `note`.
        sweeps: lines with the distances along a knob.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / RUN
        try:
            self.record: Entry = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FlexIPError(f"{folder} is no scored run ({error}); make one with `evaluate score --out`") from error
        self.folder = folder
        pictures = Lines(folder / PICTURES, ("method", "id"))
        self.pictures: dict[tuple[Any, ...], Entry] = pictures.entries
        # A run that was cut off may still hold scores of pictures that it is no longer asked for.
        scores = Lines(folder / SCORES, ("method", "picture", "metric")).entries.values()
        self.scores = [score for score in scores if (score["method"], score["picture"]) in self.pictures]
        self.sweeps = list(Lines(folder / SWEEPS, ("method", "subject", "prompt", "seed", "rest")).entries.values())

    @property
    def finished(self) -> bool:
        """Whether `evaluate score` came to its end."""
        return bool(self.record.get("finished"))

    def values(self) -> Iterator[Entry]:
        """Scores joined with their pictures: `value` (NaN for none), `subject`, `prompt`, `seed`, `knobs`, `method`."""
        for score in self.scores:
            picture = self.pictures[score["method"], score["picture"]]
            value = math.nan if score["score"] is None else float(score["score"])
            yield {**picture, **score, "value": value}
