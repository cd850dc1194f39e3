"""The sets that always stand beside a method: a copy of the reference, and true pictures of the subject."""

from __future__ import annotations

from ..benchmarks.benchmark import Benchmark
from .picture import Picture, PictureSet

COPY = "copy of the reference"
TRUE = "true pictures of the subject"
NO_ADAPTER = "no adapter"
BESIDE = (COPY, TRUE, NO_ADAPTER)


def copies(benchmark: Benchmark) -> PictureSet:
    """The reference in the place of each picture that is asked for: all preservation, no obedience."""
    pictures = [
        Picture(f"{s.id}/{number}", s.reference, s.id, s.name, prompt, s.reference)
        for s in benchmark
        for number, prompt in enumerate(s.prompts)
    ]
    return PictureSet(COPY, tuple(pictures))


def true_pictures(benchmark: Benchmark) -> PictureSet | None:
    """The subject's other pictures, made for no prompt: the ceiling of preservation; a method above it is copying.

    None where no subject has a second picture.
    """
    pictures = [
        Picture(f"{s.id}/{path.name}", path, s.id, s.name, "", s.reference) for s in benchmark for path in s.others
    ]
    return PictureSet(TRUE, tuple(pictures)) if pictures else None
