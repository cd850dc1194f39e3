"""One generated picture and what it was asked for; all pictures of one method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..benchmarks.benchmark import Benchmark

KNOBS = ("gamma", "scale", "strength")
"""What a method may be turned by, in the order in which a sweep is looked for."""


@dataclass(frozen=True)
class Picture:
    """A picture's place and origin.

    Attributes:
        id: its name in its set, unique there: the path from the set's folder.
        path: where it lies, or should.
        subject: the subject's id.
        name: the noun for the subject.
        prompt: the text that it was made for; empty for true pictures, which were made for none.
        reference: the subject's picture that the method got.
        seed: of the sampling; a number of the drawing where no seed is known.
        knobs: values by the names of `KNOBS`, as far as the method has them.
    """

    id: str
    path: Path
    subject: str
    name: str
    prompt: str
    reference: Path
    seed: int = 0
    knobs: tuple[tuple[str, float], ...] = ()

    def setting(self) -> str:
        """The knobs as text, such as `gamma=0.5`; empty without knobs."""
        return " ".join(f"{name}={value:g}" for name, value in self.knobs)


@dataclass(frozen=True)
class PictureSet:
    """All pictures of one method.

    Attributes:
        problems: a sentence for each thing that is not as it should be: pictures that the benchmark asks for and that
            are not there, lines of a manifest that name nothing.
    """

    method: str
    pictures: tuple[Picture, ...]
    problems: tuple[str, ...] = ()

    def swept_knob(self) -> str | None:
        """The first knob that takes several values here; None where there is none."""
        for name in KNOBS:
            if len({dict(picture.knobs).get(name) for picture in self.pictures}) > 1:
                return name
        return None


def left_out(benchmark: Benchmark, pictures: Sequence[Picture]) -> list[str]:
    """A sentence for each subject whose prompts have no picture, or fewer than the others (counted per setting)."""
    settings = sorted({picture.setting() for picture in pictures})
    counts = Counter((p.setting(), p.subject, p.prompt) for p in pictures)
    usual = max(counts.values(), default=0)
    sentences = []
    for subject in benchmark:
        for setting in settings:
            lacking = sum(usual - counts[setting, subject.id, prompt] for prompt in subject.prompts)
            if lacking > 0:
                where = f" at {setting}" if setting else ""
                sentences.append(
                    f"subject {subject.id}{where}: {lacking} of {usual * len(subject.prompts)} pictures are missing"
                )
    return sentences
