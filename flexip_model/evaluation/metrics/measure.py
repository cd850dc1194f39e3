"""Each metric of one batch of pictures, from models that are loaded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...encoders import cosines
from .definitions import DEFINITIONS
from .embedding import Clip, Dino
from .judge import CRITERIA, Judge, read_number
from .quality import AestheticPredictor, ClipIqa
from .reward import ImageReward
from .segment import Segmenter
from .weights import Weights

if TYPE_CHECKING:
    from PIL.Image import Image

MODELS = {"clip-l": "clip_l", "clip-rn50": "iqa", "image-reward": "reward"}
"""Roles of weights whose model has another name here."""
MISSED = "the subject was not found: counts 0"
MISSED_REFERENCE = "the subject was not found in the reference: left out"


class Item(NamedTuple):
    """One picture to score.

    Attributes:
        reference_key: equal for equal references, which are embedded once.
    """

    picture: Image
    reference: Image
    reference_key: str
    prompt: str
    name: str


class Score(NamedTuple):
    """A value, NaN where there is none, and what is to be said of it."""

    value: float
    note: str = ""


class Measure:
    """The metrics whose weights are there.

    Attributes:
        lacking: metric to what it lacks, for those that cannot be computed.
    """

    def __init__(self, weights: Weights, metrics: Sequence[str], device: torch.device) -> None:
        self.weights, self.device = weights, device
        self.lacking = {metric: said for metric in metrics if (said := weights.lacking(metric))}
        self.metrics = [metric for metric in metrics if metric not in self.lacking]
        if "clip-t" in self.metrics and weights.place("clip").is_file():
            self.lacking["clip-t"] = [
                f"{weights.place('clip')} is an encoder that reads no text; name a CLIP's whole folder"
            ]
            self.metrics.remove("clip-t")
        self._references: dict[tuple[str, str], Any] = {}
        self._cuts: dict[int, Image | None] = {}

    @cached_property
    def clip(self) -> Clip:
        return Clip(self.weights.place("clip"), self.device)

    @cached_property
    def clip_l(self) -> Clip:
        return Clip(self.weights.place("clip-l"), self.device)

    @cached_property
    def dino(self) -> Dino:
        return Dino(self.weights.place("dino"), self.device)

    @cached_property
    def segmenter(self) -> Segmenter:
        return Segmenter(self.weights.place("detector"), self.weights.place("sam"), self.device)

    @cached_property
    def iqa(self) -> ClipIqa:
        return ClipIqa(self.weights.place("clip-rn50"), self.device)

    @cached_property
    def aesthetic(self) -> AestheticPredictor:
        return AestheticPredictor(self.weights.place("aesthetic"))

    @cached_property
    def reward(self) -> ImageReward:
        return ImageReward(self.weights.place("image-reward"), self.device)

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.weights.place("judge"), self.device)

    def identity(self, metric: str) -> dict[str, dict[str, str]]:
        """The weights of a metric by role: the folder's name, their hash, and the preparation of pictures."""
        found = {}
        for role in DEFINITIONS[metric].roles:
            name = self.weights.place(role).resolve().name
            if role in ("detector", "sam"):
                entry = {"hash": self.segmenter.hashes[role], "preparation": self.segmenter.preparations[role]}
            else:
                model = getattr(self, MODELS.get(role, role))
                name = getattr(model, "name", name)
                entry = {"hash": str(model.hash), "preparation": model.preparation}
            found[role] = {"name": name, **entry}
        return found

    def __call__(self, metric: str, items: Sequence[Item]) -> list[Score]:
        """One score per item."""
        ways: dict[str, Callable[[Sequence[Item]], list[Score]]] = {
            "clip-t": self._clip_t,
            "image-reward": self._rewarded,
            "clip-i": lambda items: self._alike(items, "clip"),
            "clip-i-subject": lambda items: self._subjects_alike(items, "clip"),
            "dino-i": lambda items: self._alike(items, "dino"),
            "dino-i-subject": lambda items: self._subjects_alike(items, "dino"),
            "clip-iqa": lambda items: [Score(v) for v in self.iqa([item.picture for item in items])],
            "aesthetic": self._aesthetic,
            **{name: partial(self._judged, name) for name in CRITERIA},
        }
        return [
            score if math.isfinite(score.value) or score.note else Score(math.nan, f"{metric} is {score.value}")
            for score in ways[metric](items)
        ]

    def next_batch(self) -> None:
        """Forget the subjects that were cut out of the last batch's pictures."""
        self._cuts.clear()

    def _clip_t(self, items: Sequence[Item]) -> list[Score]:
        pictures = self.clip.pictures([item.picture for item in items])
        return _cosines(pictures, self.clip.texts([item.prompt for item in items]))

    def _rewarded(self, items: Sequence[Item]) -> list[Score]:
        rewards = self.reward([item.picture for item in items], [item.prompt for item in items])
        return [Score(value) for value in rewards]

    def _alike(self, items: Sequence[Item], family: str) -> list[Score]:
        pictures = getattr(self, family).pictures([item.picture for item in items])
        references = [self._reference(family, item.reference_key, item.reference) for item in items]
        return _cosines(pictures, torch.stack(references))

    def _subjects_alike(self, items: Sequence[Item], family: str) -> list[Score]:
        scores = []
        for item in items:
            key = ("cut", f"{item.reference_key} {item.name}")
            if key not in self._references:
                self._references[key] = self.segmenter.cut(item.reference, item.name)
            reference, picture = self._references[key], self._cut(item)
            if reference is None:
                scores.append(Score(math.nan, MISSED_REFERENCE))
            elif picture is None:
                scores.append(Score(0.0, MISSED))
            else:
                of_picture = getattr(self, family).pictures([picture])
                of_reference = self._reference(family, " ".join(key), reference)
                scores += _cosines(of_picture, of_reference[None])
        return scores

    def _aesthetic(self, items: Sequence[Item]) -> list[Score]:
        return [Score(v) for v in self.aesthetic(self.clip_l.pictures([item.picture for item in items]))]

    def _judged(self, criterion: str, items: Sequence[Item]) -> list[Score]:
        answers = [self.judge.answer(item.picture, item.prompt, criterion) for item in items]
        return [
            Score(math.nan, f"the judge answered {answer[:60]!r}")
            if (number := read_number(answer)) is None
            else Score(number)
            for answer in answers
        ]

    def _reference(self, family: str, key: str, picture: Image) -> Tensor:
        if (family, key) not in self._references:
            self._references[family, key] = getattr(self, family).pictures([picture])[0]
        return self._references[family, key]

    def _cut(self, item: Item) -> Image | None:
        key = id(item.picture)
        if key not in self._cuts:
            self._cuts[key] = self.segmenter.cut(item.picture, item.name)
        return self._cuts[key]


def _cosines(a: Tensor, b: Tensor) -> list[Score]:
    return [Score(value) for value in cosines(a, b).tolist()]
