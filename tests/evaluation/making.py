"""Benchmarks and pictures of methods, made small."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from flexip_model.__main__ import main
from flexip_model.evaluation.benchmarks.benchmark import Benchmark, read_plain

from .tiny_judges import write_clip, write_dino


def paint(path: Path, color: tuple[int, int, int], side: int = 16) -> Path:
    """A picture with one color and a darker corner, so that no two turns of it are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (side, side), color)
    picture.paste(tuple(part // 2 for part in color), (0, 0, side // 2, side // 3))
    picture.save(path)
    return path


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def tiny_benchmark(folder: Path) -> Benchmark:
    """Three subjects with two prompts; the first two have a second true picture."""
    colors = {"dog": (200, 120, 60), "cup": (60, 90, 220), "hat": (40, 180, 90)}
    rows = []
    for name, color in colors.items():
        paint(folder / f"{name}.png", color)
        other = "" if name == "hat" else paint(folder / f"{name}_2.png", tuple(c - 20 for c in color)).name
        rows.append((name, f"{name} toy", "toys", f"{name}.png", other))
    write_table(folder / "subjects.csv", ("id", "name", "category", "reference", "others"), rows)
    prompts = (("", "a {} on grass"), ("", "a {} at night"), ("hat", "a {} on a head"))
    write_table(folder / "prompts.csv", ("subject", "prompt"), prompts[:2])
    return read_plain(folder)


def tiny_pictures(folder: Path, benchmark: Benchmark, gammas: Sequence[float] = (), shift: int = 0) -> Path:
    """A method's pictures of all prompts in the plain form; with gammas a sweep from the prompt's color to the
    subject's."""
    rows = []
    for place, subject in enumerate(benchmark):
        with Image.open(subject.reference) as reference:
            own = reference.convert("RGB").getpixel((15, 15))
        for number in range(len(subject.prompts)):
            away = (250 - 40 * place, 30 + shift, 100 + 60 * number)
            for gamma in gammas or (0.7,):
                color = tuple(round(gamma * a + (1 - gamma) * b) for a, b in zip(own, away, strict=True))
                name = f"{subject.id}_{number}_{gamma:g}.png"
                paint(folder / name, color)
                rows.append((name, subject.id, number, 1, gamma if gammas else ""))
    write_table(folder / "manifest.csv", ("file", "subject", "prompt", "seed", "gamma"), rows)
    return folder


def scored_run(folder: Path) -> Path:
    """A scored run of a swept and of a plain method, with one picture missing; returns its folder."""
    benchmark = tiny_benchmark(folder / "benchmark")
    tiny_pictures(folder / "mine", benchmark, (0.0, 0.25, 0.5, 1.0))
    tiny_pictures(folder / "other", benchmark, shift=90)
    (folder / "other" / "cup_1_0.7.png").unlink()
    write_clip(folder / "clip")
    write_dino(folder / "dino")
    arguments = ["--benchmark", str(folder / "benchmark"), "--device", "cpu", "--out", str(folder / "out")]
    for name in ("mine", "other"):
        arguments += ["--pictures", f"{name}={folder / name}"]
    for role in ("clip", "dino"):
        arguments += ["--weights", f"{role}={folder / role}"]
    assert main(["evaluate", "score", *arguments]) == 0
    return folder / "out"
