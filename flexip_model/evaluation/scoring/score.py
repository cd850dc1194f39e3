"""`evaluate score`: sets of pictures through the metrics."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.console import Progress
from ...common.errors import FlexIPError
from ...files.safefile import atomic, sha256
from ..benchmarks.benchmark import Benchmark
from ..metrics.definitions import DEFINITIONS
from ..metrics.measure import Item, Measure, Score
from ..pictures.picture import Picture, PictureSet
from ..reading import read_picture
from .store import PICTURES, RUN, SCORES, SWEEPS, Entry, Lines, as_line, write_json
from .sweeps import distances, find_sweeps

if TYPE_CHECKING:
    from PIL.Image import Image

ROUND = 6
"""Decimals of a score in the file, so that a rerun on another batch size writes the same."""


def score(benchmark: Benchmark, sets: Sequence[PictureSet], measure: Measure, out: Path, batch: int = 8) -> None:
    """Score every picture by every metric that can be computed; what is in `out` already is kept.

    A picture that cannot be read gets no score and a note, as does one whose score is NaN. Files in `out` are the same
    whether the run was cut off or not.
    """
    known = {picture: _hash(picture) for picture in _files(sets)}
    identities = {metric: measure.identity(metric) for metric in measure.metrics}
    record: Entry = {
        "benchmark": {"name": benchmark.name, "source": benchmark.source, "subjects": len(benchmark)},
        "problems": list(benchmark.problems),
        "methods": [_method(pictures) for pictures in sets],
        "metrics": {
            metric: {"weights": identities.get(metric, {}), "lacking": measure.lacking.get(metric, [])}
            for metric in DEFINITIONS
            if metric in identities or metric in measure.lacking
        },
        "finished": False,
    }
    write_json(out / RUN, record)
    with atomic(out / PICTURES) as path:
        path.write_text(
            "".join(as_line(_entry(s.method, p, known[p.path])) for s in sets for p in s.pictures), encoding="utf-8"
        )
    store = Lines(out / SCORES, ("method", "picture", "metric"))
    wanted = {}
    for pictures in sets:
        for picture in pictures.pictures:
            for metric in measure.metrics:
                if picture.prompt or not DEFINITIONS[metric].needs_prompt:
                    stamp = _stamp(metric, picture, known, identities[metric])
                    wanted[pictures.method, picture.id, metric] = (picture, stamp)
    work: dict[tuple[str, Picture], list[tuple[str, str]]] = {}
    for (method, _, metric), (picture, stamp) in wanted.items():
        entry = store.entries.get((method, picture.id, metric))
        if entry is None or entry["stamp"] != stamp:
            work.setdefault((method, picture), []).append((metric, stamp))
    progress = Progress(lambda done: f"{done} of {len(work)} pictures", total=len(work), seconds=2.0)
    todo = list(work.items())
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        store.add(_scored(part, measure))
        measure.next_batch()
        progress.add(len(part))
    store.finish(wanted)
    _sweeps(sets, measure, known, out)
    write_json(out / RUN, {**record, "finished": True})


def _scored(part: Sequence[tuple[tuple[str, Picture], list[tuple[str, str]]]], measure: Measure) -> Iterator[Entry]:
    """Scores of a batch, metric by metric; a picture that cannot be read, or whose reference cannot, gets notes."""
    read: dict[tuple[str, Picture], Item | str] = {}
    for (method, picture), _ in part:
        try:
            reference = read_picture(picture.reference)
            read[method, picture] = Item(
                read_picture(picture.path), reference, str(picture.reference), picture.prompt, picture.name
            )
        except FlexIPError as error:
            read[method, picture] = str(error)
    for metric in measure.metrics:
        asked = [(key, stamp) for key, wants in part for name, stamp in wants if name == metric]
        items = [item for key, _ in asked if isinstance(item := read[key], Item)]
        scores = iter(measure(metric, items) if items else [])
        for (method, picture), stamp in asked:
            item = read[method, picture]
            found = Score(math.nan, item) if isinstance(item, str) else next(scores)
            yield {
                "method": method,
                "picture": picture.id,
                "metric": metric,
                "score": round(found.value, ROUND) + 0.0 if math.isfinite(found.value) else None,
                "note": found.note,
                "stamp": stamp,
            }


def _sweeps(sets: Sequence[PictureSet], measure: Measure, known: dict[Path, str], out: Path) -> None:
    lines = Lines(out / SWEEPS, ("method", "subject", "prompt", "seed", "rest"))
    dino = measure.dino if "dino-i" in measure.metrics else None
    wanted = []
    for pictures in sets:
        knob = pictures.swept_knob()
        for (subject, prompt, seed, rest), members in find_sweeps(pictures).items():
            stamp = _digest([[known[p.path] for p in members], dino.hash if dino else ""])
            wanted.append(key := (pictures.method, subject, prompt, seed, rest))
            if lines.entries.get(key, {}).get("stamp") == stamp:
                continue
            read, note = _read_all(members)
            entry = {
                "method": pictures.method,
                "subject": subject,
                "prompt": prompt,
                "seed": seed,
                "rest": rest,
                "knob": knob,
                "values": [dict(p.knobs)[str(knob)] for p in members],
                "pictures": [p.id for p in members],
                "distances": distances(read, dino) if read else {},
                "note": note,
                "stamp": stamp,
            }
            lines.add([entry])
    lines.finish(wanted)


def _read_all(pictures: Sequence[Picture]) -> tuple[list[Image], str]:
    try:
        return [read_picture(picture.path) for picture in pictures], ""
    except FlexIPError as error:
        return [], f"{error}: the sweep is left out"


def _method(pictures: PictureSet) -> Entry:
    return {
        "name": pictures.method,
        "pictures": len(pictures.pictures),
        "knob": pictures.swept_knob(),
        "problems": list(pictures.problems),
    }


def _entry(method: str, picture: Picture, digest: str) -> Entry:
    return {
        "method": method,
        "id": picture.id,
        "path": str(picture.path.absolute()),
        "subject": picture.subject,
        "name": picture.name,
        "prompt": picture.prompt,
        "reference": str(picture.reference.absolute()),
        "seed": picture.seed,
        "knobs": dict(picture.knobs),
        "sha256": digest,
    }


def _files(sets: Sequence[PictureSet]) -> set[Path]:
    return {path for pictures in sets for p in pictures.pictures for path in (p.path, p.reference)}


def _hash(path: Path) -> str:
    return sha256(path) if path.is_file() else ""


def _stamp(metric: str, picture: Picture, known: dict[Path, str], identity: Any) -> str:
    """What a score depends on; another one means that it is to be made anew."""
    kept = {role: {"hash": entry["hash"]} for role, entry in identity.items()}
    return _digest([metric, known[picture.path], known[picture.reference], picture.prompt, picture.name, kept])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
