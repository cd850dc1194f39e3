"""The published benchmarks, read from the folders that their makers give out."""

from __future__ import annotations

import re
from pathlib import Path

from ...common.errors import FlexIPError
from .benchmark import Benchmark, Subject, check_pictures, pictures_in

DREAMBENCH_PLUS = "DreamBench++ (arXiv 2406.16855; github.com/yuangpeng/dreambench_plus)"
DREAMBENCH_PLUS_PROMPTS = 9
DREAMBOOTH = "DreamBooth's 30 subjects (arXiv 2208.12242; github.com/google/dreambooth)"
LIVE = ("cat", "dog")
"""The classes that get the prompts for live subjects: the 9 of the 30 that the paper calls so."""


def read_dreambench_plus(folder: Path) -> Benchmark:
    """DreamBench++: `images/…/NN.jpg` and `captions/…/NN.txt`, whose first line is the subject and whose others are
    its prompts. Ids are as its own code makes them: category, number, subject.

    Raises:
        FlexIPError: no such folders, a picture without its captions or the reverse.
    """
    images = {_stem(path, folder / "images"): path for path in sorted((folder / "images").rglob("*.jpg"))}
    texts = {_stem(path, folder / "captions"): path for path in sorted((folder / "captions").rglob("*.txt"))}
    if not images or images.keys() != texts.keys():
        alone = sorted(images.keys() ^ texts.keys())[:3]
        raise FlexIPError(
            f"{folder} is not DreamBench++: {len(images)} pictures in images/ and {len(texts)} texts in captions/"
            + (f", without the other: {', '.join(alone)}" if alone else "")
            + "; give the folder `data` of its archive"
        )
    subjects, problems = [], []
    for stem, text in texts.items():
        lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
        name, prompts = lines[0], tuple(line for line in lines[1:] if line)
        if not name or not prompts:
            raise FlexIPError(f"{text} has no subject and prompts; get the archive again")
        category = text.parent.name
        prefix = f"live_subject_{category}" if category in ("animal", "human") else category
        known = "_".join([prefix, text.stem, name.lower().replace(" ", "_")])
        subjects.append(Subject(known, name, category, images[stem], (), prompts))
        if len(prompts) != DREAMBENCH_PLUS_PROMPTS:
            problems.append(f"subject {known}: {len(prompts)} prompts, published are {DREAMBENCH_PLUS_PROMPTS}")
    if len(subjects) != 150:
        problems.append(f"{len(subjects)} subjects, published are 150")
    subjects.sort(key=lambda subject: subject.id)
    return Benchmark("DreamBench++", DREAMBENCH_PLUS, tuple(subjects), (*problems, *check_pictures(subjects)))


def read_dreambooth(folder: Path) -> Benchmark:
    """DreamBooth's data set: a folder of pictures per subject and `prompts_and_classes.txt`; the repository's root may
    be given too. The first picture by name is the reference, the others are true pictures beside it. The prompts' rare
    token is left out, since no method here was tuned to one.

    Raises:
        FlexIPError: the text file is missing or of another form.
    """
    folder = folder / "dataset" if (folder / "dataset").is_dir() else folder
    path = folder / "prompts_and_classes.txt"
    if not path.is_file():
        raise FlexIPError(f"{path} is missing; give the folder `dataset` of google/dreambooth")
    text = path.read_text(encoding="utf-8")
    classes = dict(re.findall(r"^(\w+),([a-z ]+)$", text, re.MULTILINE))
    classes.pop("subject_name", None)
    _, _, rest = text.partition("Object Prompts")
    lists = [re.findall(r"'(.+?)'\.format", part) for part in rest.partition("Live Subject Prompts")[::2]]
    if not classes or not all(lists):
        raise FlexIPError(f"{path} is not of the known form (classes, object prompts, live subject prompts)")
    subjects, problems = [], []
    for known, name in classes.items():
        pictures = pictures_in(folder / known) if (folder / known).is_dir() else []
        if not pictures:
            problems.append(f"subject {known}: no pictures in {folder / known}; it is left out")
            continue
        prompts = tuple(p.format("", name).replace("  ", " ") for p in lists[name in LIVE])
        category = "live" if name in LIVE else "object"
        subjects.append(Subject(known, name, category, pictures[0], tuple(pictures[1:]), prompts))
    return Benchmark("DreamBooth", DREAMBOOTH, tuple(subjects), (*problems, *check_pictures(subjects)))


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()
