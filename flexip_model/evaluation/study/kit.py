"""`evaluate study`: one HTML page that asks, for each sample, which picture follows the text and which keeps the
subject best (section 4.3.1: 33 samples, 60 evaluators).

The page names no method: pictures have opaque codes, drawn anew for each sample, and `key.json` beside it says whose
they are. Each evaluator sees samples and pictures in an order of their own. Their answers are saved as a JSON file.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ...common.errors import FlexIPError
from ...files.safefile import atomic
from ..pictures.picture import Picture, PictureSet
from ..reading import why_unreadable
from ..report.drawing import embed_picture

SAMPLES = 33
SIDE = 384
QUESTIONS = {
    "flex": "Which picture follows the text best?",
    "id-pres": "Which picture keeps the subject of the reference best?",
}
"""By the names of Table 1's columns; the paper's words: "best aligns with the textual semantics", "best preserves the
subject"."""


@dataclass(frozen=True)
class Sample:
    """A subject and a prompt, with one picture of every method."""

    subject: str
    prompt: str
    pictures: dict[str, Picture]


def draw_samples(sets: Sequence[PictureSet], count: int = SAMPLES, seed: int = 0) -> list[Sample]:
    """Subjects and prompts of which every method has a picture that can be read, spread evenly over subjects.

    Raises:
        FlexIPError: fewer than two methods, a method with several settings, fewer samples than are asked for.
    """
    if len(sets) < 2:
        raise FlexIPError("a study compares at least two methods; name more with --pictures")
    for pictures in sets:
        if pictures.swept_knob() is not None:
            raise FlexIPError(
                f"{pictures.method} has pictures at several values of {pictures.swept_knob()}; give the study one: "
                f"{pictures.method}=FOLDER@{pictures.swept_knob()}=VALUE"
            )
    by_place = []
    for pictures in sets:
        first: dict[tuple[str, str], Picture] = {}
        for picture in sorted(pictures.pictures, key=lambda p: (p.seed, p.id)):
            first.setdefault((picture.subject, picture.prompt), picture)
        by_place.append(first)
    common = sorted(set.intersection(*(set(first) for first in by_place)))
    rng = Random(seed)
    rng.shuffle(common)
    seen: dict[str, int] = {}
    turns = []
    for place, key in enumerate(common):
        turns.append((seen.get(key[0], 0), place, key))
        seen[key[0]] = seen.get(key[0], 0) + 1
    found: list[Sample] = []
    for _, _, key in sorted(turns):
        own = {s.method: first[key] for s, first in zip(sets, by_place, strict=True)}
        one = next(iter(own.values()))
        if len(found) < count and not any(map(why_unreadable, (one.reference, *(p.path for p in own.values())))):
            found.append(Sample(*key, own))
    if len(found) < count:
        raise FlexIPError(
            f"{len(found)} samples have a readable picture of every method, {count} are asked for; add pictures or "
            f"name --samples {max(len(found), 1)}"
        )
    return found


def write_kit(samples: Sequence[Sample], out: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write `study.html` and `key.json`; returns both.

    Raises:
        FlexIPError: there is a study in the folder already, whose answers belong to its own key.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    page, key = out / "study.html", out / "key.json"
    if page.exists() or key.exists():
        raise FlexIPError(f"{out} holds a study already; name another folder, its answers belong to its own key")
    rng, study = Random(seed), secrets.token_hex(8)
    shown: list[dict[str, object]] = []
    owners: dict[str, str] = {}
    for number, sample in enumerate(samples):
        methods = list(sample.pictures)
        rng.shuffle(methods)
        codes = {f"{number:02}-{place}": method for place, method in enumerate(methods)}
        owners |= codes
        shown.append(
            {
                "sample": number,
                "prompt": sample.prompt,
                "reference": embed_picture(next(iter(sample.pictures.values())).reference, SIDE),
                "pictures": [[code, embed_picture(sample.pictures[m].path, SIDE)] for code, m in codes.items()],
            }
        )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template("study.html.j2").render(study=study, samples=shown, questions=QUESTIONS)
    with atomic(page) as path:
        path.write_text(text, encoding="utf-8")
    methods = sorted({method for sample in samples for method in sample.pictures})
    where = [{"subject": sample.subject, "prompt": sample.prompt} for sample in samples]
    value = {"study": study, "methods": methods, "samples": where, "owners": owners}
    with atomic(key) as path:
        path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return page, key
