"""What is to be drawn: subjects × prompts × seeds × γ (or IP-Adapter's scale) × strength."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..benchmarks.benchmark import Benchmark, Subject


class Wanted(Protocol):
    """A picture to draw: of a reference, by a prompt, from a seed's noise, at a γ or scale and a strength."""

    @property
    def reference(self) -> Path: ...
    @property
    def prompt(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def value(self) -> float: ...
    @property
    def strength(self) -> float: ...


AnyWanted = TypeVar("AnyWanted", bound=Wanted)


@dataclass(frozen=True)
class Request:
    """A picture of a figure, see `Wanted`; without a benchmark."""

    reference: Path
    prompt: str
    seed: int = 0
    value: float = 0.0
    strength: float = 1.0


@dataclass(frozen=True)
class Job:
    """One picture.

    Attributes:
        knob: `gamma`, `scale` or None for the base alone.
        value: of the knob; 0 for the base alone.
        strength: on all that the adapter adds.
    """

    subject: Subject
    number: int
    seed: int
    knob: str | None
    value: float
    strength: float

    @property
    def reference(self) -> Path:
        return self.subject.reference

    @property
    def prompt(self) -> str:
        return self.subject.prompts[self.number]

    @property
    def file(self) -> Path:
        """The picture's path from the output folder."""
        folder = re.sub(r"[^\w.-]", "_", self.subject.id)
        name = f"{self.number}_{self.seed}"
        if self.knob:
            name += f"_{self.knob}{self.value:g}"
        if self.strength != 1:
            name += f"_strength{self.strength:g}"
        return Path(folder) / f"{name}.png"

    def manifest(self) -> dict[str, Any]:
        """What the plain form wants beside the picture."""
        entry: dict[str, Any] = {
            "subject": self.subject.id,
            "name": self.subject.name,
            "prompt": self.prompt,
            "seed": self.seed,
        }
        if self.knob:
            entry |= {self.knob: self.value, "strength": self.strength}
        return entry


def plan(
    benchmark: Benchmark, seeds: Sequence[int], knob: str | None, values: Sequence[float], strengths: Sequence[float]
) -> list[Job]:
    """All jobs, so that what differs by the knob alone lies side by side."""
    return [
        Job(subject, number, seed, knob, value, strength)
        for subject in benchmark
        for number in range(len(subject.prompts))
        for seed in seeds
        for strength in (strengths if knob else (1.0,))
        for value in (values if knob else (0.0,))
    ]


def batches(jobs: Sequence[AnyWanted], size: int, one_value: bool = False) -> list[list[AnyWanted]]:
    """Jobs of one strength (and of one value where that is asked for) in batches, always the same ones: what is drawn
    together does not hang on what is done."""

    def alike(job: AnyWanted) -> tuple[float, float | None]:
        return job.strength, job.value if one_value else None

    found = []
    for kind in dict.fromkeys(map(alike, jobs)):
        own = [job for job in jobs if alike(job) == kind]
        found += [own[start : start + size] for start in range(0, len(own), size)]
    return found
