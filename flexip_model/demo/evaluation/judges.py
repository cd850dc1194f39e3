"""Whether a picture shows what its prompt asks for: background, style, and which of many subjects.

Backgrounds are judged by color alone, against the truth of the composition. Style and subject are judged by
MobileNetV2's features (`evaluation.judge`); the style's probe is fitted to composed pictures, never to generated ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..scenes.backgrounds import COLORS, SCENES, color_name, draw_scene
from ..scenes.compose import MIDDLE, Composer
from ..scenes.concepts import Subject
from .judge import Judge, raw_pixels

SIDE = 128
JUDGED_STYLES = ("3d", "flat", "line")
"""Fluent's, which version 4 of the shipped model draws."""
BACKGROUNDS = (*(f"plain:{name}" for name in COLORS), *(f"scene:{name}" for name in SCENES))
_CENTER = (14, 14, 114, 114)
"""What the judge of styles looks at."""


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for beside the subject."""

    style: str
    background: str

    def prompt(self, name: str) -> str:
        style = {"3d": "3d render", "flat": "flat icon", "line": "high contrast drawing"}[self.style]
        kind, where = self.background.split(":")
        words = f"on a plain {where} background" if kind == "plain" else SCENES[where][1][0]
        return f"a {style} of {'an' if name[0] in 'aeiou' else 'a'} {name} {words}"


def border(picture: Image.Image, width: int = 10) -> np.ndarray:
    """Median color of a picture's frame, (3,), 0 to 255."""
    values = np.asarray(picture, np.float32)
    inside = np.zeros(values.shape[:2], bool)
    inside[width:-width, width:-width] = True
    return np.median(values[~inside], axis=0)


class BackgroundJudge:
    """Names a background: a plain one by its frame's median color, a scene by the nearest of the scenes' mean
    drawings around the edge."""

    def __init__(self) -> None:
        self.means = {
            name: np.mean([self._look(draw_scene(name, np.random.default_rng(i), SIDE)) for i in range(64)], 0)
            for name in SCENES
        }

    @staticmethod
    def _look(picture: Image.Image) -> np.ndarray:
        cells = np.asarray(picture.convert("RGB").resize((8, 8), Image.Resampling.BOX), np.float32)
        frame = np.ones((8, 8), bool)
        frame[1:-1, 1:-1] = False
        return cells[frame]

    def scene(self, picture: Image.Image) -> str:
        """The name of the nearest scene."""
        look = self._look(picture)
        return min(self.means, key=lambda n: float(((look - self.means[n]) ** 2).mean()))

    def right(self, picture: Image.Image, background: str) -> bool:
        """Whether it is the background that was asked for, among those of its kind."""
        kind, name = background.split(":")
        return (color_name(border(picture)) if kind == "plain" else self.scene(picture)) == name


def compose(composer: Composer, subject: Subject, asked: Asked, seed: int) -> Image.Image | None:
    """The true picture of a subject as it was asked for, framed as targets are; None if it has no such style."""
    looks = composer.store.looks_of(subject.code, asked.style)
    if not looks:
        return None
    recipe = composer.recipe(np.random.default_rng(seed), looks[0], recolor=0)
    return composer.picture(
        replace(recipe, background=asked.background, scale=0.8, stretch=1.0, x=0.5, y=MIDDLE, flip=False, angle=0.0)
    )


class StyleJudge:
    """A linear probe of the judge's textures of the picture's middle: 3d, flat or line.

    Args:
        composer: of the subjects whose true pictures it is fitted to.
    """

    def __init__(self, judge: Judge, composer: Composer, per_style: int = 150, seed: int = 3) -> None:
        self.judge = judge
        features, truth = self.examples(composer, per_style, seed)
        self.mean, self.std = features.mean(0), features.std(0) + 1e-4
        self.weight = torch.zeros(len(JUDGED_STYLES), features.shape[1], requires_grad=True)
        self.bias = torch.zeros(len(JUDGED_STYLES), requires_grad=True)
        solver = torch.optim.LBFGS([self.weight, self.bias], max_iter=100)

        def loss() -> Tensor:
            solver.zero_grad()
            value = F.cross_entropy(self._logits(features), truth) + 0.1 * self.weight.pow(2).sum()
            value.backward()
            return value

        with torch.enable_grad():
            solver.step(loss)

    def examples(self, composer: Composer, per_style: int, seed: int) -> tuple[Tensor, Tensor]:
        """Textures of composed pictures of every style, and its number in `JUDGED_STYLES`."""
        rng = np.random.default_rng(seed)
        pictures, truth = [], []
        subjects = composer.store.subjects
        for number, style in enumerate(JUDGED_STYLES):
            found = 0
            while found < per_style:
                asked = Asked(style, BACKGROUNDS[rng.integers(len(BACKGROUNDS))])
                picture = compose(composer, subjects[rng.integers(len(subjects))], asked, int(rng.integers(1 << 30)))
                if picture is not None:
                    pictures.append(picture.crop(_CENTER))
                    truth.append(number)
                    found += 1
        return self.judge.textures(pictures), torch.tensor(truth)

    def _logits(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std @ self.weight.t() + self.bias

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Probabilities of the styles, (n, 3)."""
        return self._logits(self.judge.textures([p.crop(_CENTER) for p in pictures])).softmax(-1)

    @torch.no_grad()
    def accuracy(self, composer: Composer, per_style: int = 80, seed: int = 4) -> float:
        """Its accuracy on true pictures of other subjects."""
        features, truth = self.examples(composer, per_style, seed)
        return float((self._logits(features).argmax(-1) == truth).float().mean())


class Gallery:
    """Candidates among which a judge looks for a picture's subject: the true pictures of all subjects, each over the
    background that the prompt asks for, so that the background decides nothing."""

    def __init__(self, judge: Judge, composer: Composer, subjects: Sequence[Subject]) -> None:
        self.judge, self.composer, self.subjects = judge, composer, subjects
        self._known: dict[Asked, tuple[Tensor, Tensor]] = {}

    def candidates(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """The judge's vectors and the raw pixels' vectors, one row per subject (3d where the style is missing)."""
        if asked not in self._known:
            pictures = []
            for subject in self.subjects:
                picture = compose(self.composer, subject, asked, 1)
                pictures.append(picture or compose(self.composer, subject, replace(asked, style="3d"), 1))
            kept = [p for p in pictures if p is not None]
            self._known[asked] = self.judge(kept), raw_pixels(kept)
        return self._known[asked]
