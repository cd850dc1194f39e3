"""One form for every benchmark, and the plain form on disk that a user writes by hand.

The plain form is a folder with two tables (UTF-8, comma separated, first line as here):

subjects.csv: `id,name,category,reference,others`. `name` is the noun that prompts and detectors call the subject;
`reference` is a picture's path from the folder; `others`, which may be empty, are more true pictures of the same
subject, divided by `;`.

prompts.csv: `subject,prompt`. `subject` is an id, or empty for every subject; `{}` in a prompt becomes the subject's
name. A subject's prompts are numbered from 0 in the order of the lines.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...common.errors import FlexIPError
from ...files.safefile import atomic
from ..reading import why_unreadable

SUBJECT_COLUMNS = ("id", "name", "category", "reference", "others")
PROMPT_COLUMNS = ("subject", "prompt")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Subject:
    """Who or what is to be kept.

    Attributes:
        id: unique in its benchmark.
        name: the noun for it, such as "dog".
        category: the benchmark's own grouping, empty where it has none.
        reference: the picture that a method gets.
        others: more true pictures of it, for the ceiling that no honest method passes.
        prompts: what is asked for, in order.
    """

    id: str
    name: str
    category: str
    reference: Path
    others: tuple[Path, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """Subjects in the order of their files, where they came from, and what is wrong with them (a sentence each)."""

    name: str
    source: str
    subjects: tuple[Subject, ...]
    problems: tuple[str, ...] = ()

    def __getitem__(self, subject: str) -> Subject:
        return self._by_id[subject]

    def __contains__(self, subject: object) -> bool:
        return subject in self._by_id

    def __iter__(self) -> Iterator[Subject]:
        return iter(self.subjects)

    def __len__(self) -> int:
        return len(self.subjects)

    @cached_property
    def _by_id(self) -> dict[str, Subject]:
        return {subject.id: subject for subject in self.subjects}


def pictures_in(folder: Path) -> list[Path]:
    """A folder's picture files, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def check_pictures(subjects: Sequence[Subject]) -> list[str]:
    """A sentence for each picture of the subjects that is missing or cannot be read."""
    paths = [(subject.id, path) for subject in subjects for path in (subject.reference, *subject.others)]
    return [f"subject {name}: {why}" for name, path in paths if (why := why_unreadable(path))]


def read_plain(folder: Path) -> Benchmark:
    """Read the plain form.

    Raises:
        FlexIPError: a table is missing or has other columns, an id comes twice, a prompt is for nobody, a subject has
            no prompt.
    """
    subjects = _rows(folder / "subjects.csv", SUBJECT_COLUMNS)
    prompts = _rows(folder / "prompts.csv", PROMPT_COLUMNS)
    ids = [row["id"] for row in subjects]
    for name in ids:
        if not name or ids.count(name) > 1:
            raise FlexIPError(f"{folder / 'subjects.csv'}: the id {name!r} is empty or comes twice; each needs its own")
    unknown = {row["subject"] for row in prompts} - {"", *ids}
    if unknown:
        raise FlexIPError(f"{folder / 'prompts.csv'} has prompts for {sorted(unknown)[0]!r}, which is no subject's id")
    found = []
    for row in subjects:
        own = tuple(p["prompt"].replace("{}", row["name"]) for p in prompts if p["subject"] in ("", row["id"]))
        if not own:
            raise FlexIPError(f"{folder / 'prompts.csv'} has no prompt for the subject {row['id']!r}; give it one")
        others = tuple(folder / part.strip() for part in row["others"].split(";") if part.strip())
        found.append(Subject(row["id"], row["name"], row["category"], folder / row["reference"], others, own))
    return Benchmark(folder.resolve().name, str(folder), tuple(found), tuple(check_pictures(found)))


def write_plain(benchmark: Benchmark, folder: Path) -> None:
    """Write any benchmark's two tables; pictures stay where they are and are named by their absolute paths.

    Raises:
        FlexIPError: there are tables in `folder` already.
    """
    if (folder / "subjects.csv").exists():
        raise FlexIPError(f"{folder / 'subjects.csv'} exists already; name another folder")
    subjects = [
        (s.id, s.name, s.category, s.reference.resolve(), ";".join(str(p.resolve()) for p in s.others))
        for s in benchmark
    ]
    prompts = [(subject.id, prompt) for subject in benchmark for prompt in subject.prompts]
    for name, columns, rows in (
        ("prompts.csv", PROMPT_COLUMNS, prompts),
        ("subjects.csv", SUBJECT_COLUMNS, subjects),
    ):
        with atomic(folder / name) as path, path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([columns, *rows])


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if list(reader.fieldnames or ()) != list(columns):
                raise FlexIPError(f"{path} begins with {reader.fieldnames}; expected the columns {','.join(columns)}")
            rows = [{key: (row[key] or "").strip() for key in columns} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlexIPError(f"{path} cannot be read ({error}); it is part of the plain form of a benchmark") from error
    if not rows:
        raise FlexIPError(f"{path} has no lines below its columns")
    return rows
