"""Readers of generated pictures.

The plain form is a folder of pictures with one of:

- `manifest.csv`: `file,subject,prompt,seed,gamma,scale,strength,reference,name`; only `file`, `subject` and `prompt`
  are needed, the others may be left out or empty;
- `manifest.json` (a list) or `manifest.jsonl` (a line each) of objects with the same keys;
- a file NAME.json beside each picture NAME.png, with the same keys but `file`.

`prompt` is the text, or the prompt's number in the benchmark. `reference` (a path from the folder) and `name` (the
noun) are needed only for subjects that the benchmark does not have.

The folder form is DreamBench++'s: `src_image/SUBJECT/I_J.jpg`, `tgt_image/SUBJECT/I_J.jpg`, `text/SUBJECT/I_J.txt`,
where I is the prompt's number and J the drawing's.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...common.errors import FlexIPError
from ..benchmarks.benchmark import PICTURES, Benchmark, pictures_in
from .picture import KNOBS, Picture, PictureSet, left_out

MANIFESTS = ("manifest.csv", "manifest.json", "manifest.jsonl")


def read_pictures(
    method: str, folder: Path, benchmark: Benchmark | None = None, at: tuple[str, float] | None = None
) -> PictureSet:
    """Read a method's pictures, the form told by the folder's files. No picture is opened.

    Args:
        benchmark: where references, nouns and numbered prompts are looked up, and whose pictures are asked for.
        at: a knob and its value; pictures at other values are not taken.

    Raises:
        FlexIPError: no such folder, none of the forms, a manifest that cannot be read.
    """
    if not folder.is_dir():
        raise FlexIPError(f"there is no folder {folder} with the pictures of {method}")
    problems: list[str] = []
    if (folder / "tgt_image").is_dir():
        pictures = list(_folder_form(folder, problems))
    else:
        pictures = list(_plain_form(folder, benchmark, problems))
    if at is not None:
        pictures = [picture for picture in pictures if dict(picture.knobs).get(at[0]) == at[1]]
    if not pictures:
        where = f" at {at[0]}={at[1]:g}" if at else ""
        raise FlexIPError(f"{folder} holds no pictures of {method}{where}" + (f": {problems[0]}" if problems else ""))
    twice = [name for name, count in Counter(picture.id for picture in pictures).items() if count > 1]
    if twice:
        raise FlexIPError(f"{folder} names {twice[0]} twice; each picture needs a line of its own")
    if benchmark is not None:
        problems += left_out(benchmark, pictures)
    return PictureSet(method, tuple(sorted(pictures, key=lambda p: p.id)), tuple(problems))


def _folder_form(folder: Path, problems: list[str]) -> Iterator[Picture]:
    made = {_stem(path, folder / "tgt_image"): path for path in _all(folder / "tgt_image")}
    given = {_stem(path, folder / "src_image"): path for path in _all(folder / "src_image")}
    texts = {_stem(path, folder / "text"): path for path in sorted((folder / "text").rglob("*.txt"))}
    for stem in sorted(made.keys() | given.keys() | texts.keys()):
        lacking = [
            name for name, there in (("src_image", given), ("tgt_image", made), ("text", texts)) if stem not in there
        ]
        if "text" in lacking or "src_image" in lacking:
            problems.append(f"{stem}: nothing in {' and '.join(lacking)}; it is left out")
            continue
        subject, _, name = stem.rpartition("/")
        drawing = re.fullmatch(r"\d+_(\d+)", name)
        target = made.get(stem, folder / "tgt_image" / f"{stem}{given[stem].suffix}")
        yield Picture(
            id=target.relative_to(folder).as_posix(),
            path=target,
            subject=subject,
            name=re.sub(r"^.*?\d+_", "", subject).replace("_", " "),
            prompt=texts[stem].read_text(encoding="utf-8").strip(),
            reference=given[stem],
            seed=int(drawing[1]) if drawing else 0,
        )


def _plain_form(folder: Path, benchmark: Benchmark | None, problems: list[str]) -> Iterator[Picture]:
    named = set()
    for where, entry in _entries(folder):
        try:
            picture = _picture(folder, entry, benchmark)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            problems.append(f"{where}: {_told(error)}; it is left out")
            continue
        named.add(picture.path.resolve())
        yield picture
    for path in _all(folder):
        if path.resolve() not in named and not any("reference" in part for part in path.relative_to(folder).parts):
            problems.append(f"{path.relative_to(folder).as_posix()}: no line of a manifest names it; it is left out")


def _entries(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    manifests = [folder / name for name in MANIFESTS if (folder / name).is_file()]
    if len(manifests) > 1:
        raise FlexIPError(f"{folder} has {manifests[0].name} and {manifests[1].name}; keep one")
    try:
        if not manifests:
            for path in sorted(folder.rglob("*.json")):
                picture = next((p for s in PICTURES if (p := path.with_suffix(s)).is_file()), path.with_suffix(".png"))
                entry = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(entry, dict) and "subject" in entry:
                    yield path.name, {**entry, "file": picture.relative_to(folder).as_posix()}
            return
        path = manifests[0]
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                entries: list[Any] = list(csv.DictReader(file))
        elif path.suffix == ".json":
            entries = json.loads(path.read_text(encoding="utf-8"))
        else:
            entries = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise FlexIPError(f"a manifest in {folder} cannot be read ({error})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FlexIPError(f"{path} is not a list of objects; each is to have file, subject and prompt")
    for number, entry in enumerate(entries, 1):
        yield f"{path.name}, entry {number}", entry


def _picture(folder: Path, entry: Mapping[str, Any], benchmark: Benchmark | None) -> Picture:
    subject, file = str(entry["subject"]), str(entry["file"])
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise ValueError(f"{file} lies outside the folder")
    known = benchmark[subject] if benchmark is not None and subject in benchmark else None
    prompt = entry["prompt"]
    if isinstance(prompt, int) or (isinstance(prompt, str) and prompt.strip().isdigit()):
        if known is None:
            raise ValueError(f"prompt {prompt} of the subject {subject!r}, which the benchmark does not have")
        if not 0 <= int(prompt) < len(known.prompts):
            raise ValueError(f"there is no prompt {prompt}; {subject} has {len(known.prompts)}, from 0")
        prompt = known.prompts[int(prompt)]
    if entry.get("reference"):
        reference = folder / str(entry["reference"])
    elif known is not None:
        reference = known.reference
    else:
        raise ValueError(f"the benchmark has no subject {subject!r}; name a reference, or another benchmark")
    knobs = tuple((name, float(entry[name])) for name in KNOBS if entry.get(name) not in (None, ""))
    return Picture(
        id=file,
        path=folder / file,
        subject=subject,
        name=str(entry.get("name") or (known.name if known else subject.replace("_", " "))),
        prompt=str(prompt).strip(),
        reference=reference,
        seed=int(entry.get("seed") or 0),
        knobs=knobs,
    )


def _told(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [*pictures_in(folder), *(p for sub in sorted(folder.iterdir()) if sub.is_dir() for p in _all(sub))]


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()
