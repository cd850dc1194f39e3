"""Whether a picture shows what its prompt asks for: its background, and which of many subjects.

Backgrounds are judged by color alone, against the truth of the composition. Subjects are judged by MobileNetV2's
features (`evaluation.judge`), or by raw pixels. How the picture is drawn: see `evaluation.style`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..scenes.backgrounds import SCENES, color_name, draw_scene
from ..scenes.compose import Composer
from ..scenes.store import Look
from .judge import Judge, raw_pixels, to_bytes
from .style import StyleJudge
from .subjects import JUDGED_STYLES, Cast, Wanted, Word, true_pictures

SIDE = 128
_CELLS = 8
_named = cache(lambda color: color_name(np.array(color)))


def border(pictures: Tensor, width: int = 10) -> np.ndarray:
    """Median color of each picture's frame: (n, 3, h, w) uint8 → (n, 3), 0 to 255."""
    inside = torch.zeros(pictures.shape[2:], dtype=torch.bool, device=pictures.device)
    inside[width:-width, width:-width] = True
    frame = pictures[:, :, ~inside].sort(-1).values.float()
    middle = frame.shape[-1] // 2
    return frame[..., middle - 1 : middle + 1].mean(-1).cpu().numpy()  # the frame has an even number of pixels


class BackgroundJudge:
    """Names a background: a plain one by its frame's median color, a scene by the nearest of the scenes' mean
    drawings around the edge."""

    def __init__(self) -> None:
        self.means = torch.stack(
            [
                self._look(to_bytes([draw_scene(name, np.random.default_rng(i), SIDE) for i in range(64)])).mean(0)
                for name in SCENES
            ]
        )

    @staticmethod
    def _look(pictures: Tensor) -> Tensor:
        """The 28 cells around the edge of 8 × 8, (n, 84)."""
        cells = F.adaptive_avg_pool2d(pictures.float(), _CELLS)
        frame = torch.ones(_CELLS, _CELLS, dtype=torch.bool, device=pictures.device)
        frame[1:-1, 1:-1] = False
        return cells[:, :, frame].flatten(1)

    def scenes(self, pictures: Tensor) -> list[str]:
        """The name of each picture's nearest scene."""
        far = torch.cdist(self._look(pictures), self.means.to(pictures.device))
        return [list(SCENES)[i] for i in far.argmin(1).tolist()]

    def right(self, pictures: Tensor, backgrounds: Sequence[str]) -> np.ndarray:
        """Whether each picture has the background that was asked for, among those of its kind: (n,) bool."""
        plain = [_named(tuple(color)) for color in border(pictures).tolist()]
        found = {"plain": plain, "scene": self.scenes(pictures)}
        asked = [background.split(":") for background in backgrounds]
        return np.array([found[kind][n] == name for n, (kind, name) in enumerate(asked)])


class Gallery:
    """True pictures among which a judge looks for a picture's subject, all over the background that the prompt asks
    for, so that the background decides nothing. Each is composed and seen once.

    Args:
        composer: of the whole store, held-out drawings included.
    """

    def __init__(self, judge: Judge, composer: Composer) -> None:
        self.judge, self.composer = judge, composer
        self._seen: dict[tuple[int, str], Tensor] = {}
        self._raw: dict[tuple[int, str], Tensor] = {}

    def vectors(self, looks: Sequence[Look], background: str) -> tuple[Tensor, Tensor]:
        """The judge's vectors and the raw pixels' vectors, (n, 1280) and (n, 3072), on the judge's device."""
        missing = [look for look in looks if (look.row, background) not in self._seen]
        if missing:
            pictures = to_bytes(true_pictures(self.composer, missing, background)).to(self.judge.device)
            for look, seen, raw in zip(missing, self.judge(pictures), raw_pixels(pictures), strict=True):
                self._seen[look.row, background], self._raw[look.row, background] = seen, raw
        keys = [(look.row, background) for look in looks]
        return torch.stack([self._seen[k] for k in keys]), torch.stack([self._raw[k] for k in keys])

    def cosines(self, seen: Tensor, words: Sequence[Word], background: str, styles: Iterable[str]) -> Tensor:
        """Each picture's cosine with each word's best drawing in these styles: (n, 1280) → (n, words); a word without
        any counts by all its drawings."""
        looks, owner = [], []
        for number, word in enumerate(words):
            own = [x for style in styles for x in word.looks.get(style, ())]
            own = own or [x for drawn in word.looks.values() for x in drawn]
            looks += own
            owner += [number] * len(own)
        every = seen @ self.vectors(looks, background)[0].t()
        place = torch.tensor(owner, device=every.device).expand(len(every), -1)
        best = every.new_full((len(every), len(words)), -2.0)
        return best.scatter_reduce(1, place, every, "amax")


PER_PICTURE = (
    *("first", "first_raw", "preservation", "background", "style", "fidelity"),
    *("concept", "concept_any", "asked", "kept", "following"),
)
OWN = (
    *("first", "first_raw", "preservation", "concept", "concept_any", "background", "style", "text", "fidelity"),
    *("both", *(f"style_{style}" for style in JUDGED_STYLES)),
)
OTHER = ("asked", "kept", "preservation", "following", "background", "style", "text", "fidelity")
_PART = 1024

Measures = dict[str, float]


class Jury:
    """All judges together, on pictures of a cast."""

    def __init__(self, judge: Judge, styles: StyleJudge, gallery: Gallery, cast: Cast) -> None:
        self.judge, self.styles, self.gallery, self.cast = judge, styles, gallery, cast
        self.backgrounds = BackgroundJudge()

    def judged(self, wanted: Sequence[Wanted], pictures: Tensor) -> dict[str, np.ndarray]:
        """What the judges say of each picture, (n,) each; NaN where something is not asked of it.

        first, first_raw: the judge, and raw pixels, choose the subject's own reference among those of all subjects.
        preservation: the judge's cosine with the own reference minus its mean cosine with the others.
        background, style: right or not. fidelity: the probability of the style asked for, 0 where the background is
            wrong.
        concept, concept_any (own): the subject's word is the judge's first of all subjects' words, each by its best
            drawing in the style asked for, and by its best in any style.
        asked, kept (other): of all subjects' words and the word asked for, the judge's first is the one asked for, or
            the subject's own. following: its cosine with the word asked for minus the mean with those that are neither.
        """
        parts = [
            self._judged(wanted[start : start + _PART], pictures[start : start + _PART])
            for start in range(0, len(wanted), _PART)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _judged(self, wanted: Sequence[Wanted], pictures: Tensor) -> dict[str, np.ndarray]:
        pictures = pictures.to(self.judge.device)
        seen, raw = self.judge(pictures), raw_pixels(pictures)
        words = [held.word for held in self.cast.subjects]
        looks = [held.reference for held in self.cast.subjects]
        number = torch.tensor([w.number for w in wanted], device=seen.device)
        found = {name: np.full(len(wanted), np.nan) for name in PER_PICTURE}

        def note(name: str, rows: list[int], values: Tensor) -> None:
            found[name][rows] = values.double().cpu().numpy()

        for background, rows in _groups(wanted, lambda w: w.asked.background):
            candidates, raw_candidates = self.gallery.vectors(looks, background)
            mine, cosines = number[rows], seen[rows] @ candidates.t()
            note("first", rows, cosines.argmax(1) == mine)
            note("first_raw", rows, (raw[rows] @ raw_candidates.t()).argmax(1) == mine)
            note("preservation", rows, _margin(cosines, mine, cosines.sum(1)))
        for asked, rows in _groups(wanted, lambda w: w.asked if w.own else None):
            for name, styles in (("concept", (asked.style,)), ("concept_any", JUDGED_STYLES)):
                cosines = self.gallery.cosines(seen[rows], words, asked.background, styles)
                note(name, rows, cosines.argmax(1) == number[rows])
        for (word, asked), rows in _groups(wanted, lambda w: None if w.own else (w.word, w.asked)):
            cosines = self.gallery.cosines(seen[rows], [*words, word], asked.background, (asked.style,))
            mine, last = number[rows], torch.full((len(rows),), len(words), device=seen.device)
            note("asked", rows, cosines.argmax(1) == last)
            note("kept", rows, cosines.argmax(1) == mine)
            neither = cosines.sum(1) - cosines.gather(1, mine[:, None])[:, 0]
            note("following", rows, _margin(cosines, last, neither, len(words)))
        chances = self.styles(pictures)
        style = torch.tensor([JUDGED_STYLES.index(w.asked.style) for w in wanted], device=chances.device)
        found["background"][:] = self.backgrounds.right(pictures, [w.asked.background for w in wanted])
        note("style", list(range(len(wanted))), chances.argmax(1) == style)
        chance = chances.gather(1, style[:, None])[:, 0].double().cpu().numpy()
        found["fidelity"][:] = found["background"] * chance
        return found


def means(wanted: Sequence[Wanted], judged: dict[str, np.ndarray]) -> tuple[Measures, Measures]:
    """A subject's means over the pictures by its own word, and over those by another.

    Beside what is judged of each picture: text, background and style both right; both (own), that and `first`;
    style_3d and so on (own), style as asked, of the pictures in each style.
    """
    own = np.array([w.own for w in wanted])
    text = judged["background"] * judged["style"]
    every = {**judged, "text": text, "both": text * judged["first"]}
    for style in JUDGED_STYLES:
        of_it = np.array([w.asked.style == style for w in wanted])
        every[f"style_{style}"] = np.where(of_it, judged["style"], np.nan)

    def over(rows: np.ndarray, names: Sequence[str]) -> Measures:
        return {name: round(float(np.nanmean(every[name][rows])), 4) for name in names}

    return over(own, OWN), over(~own, OTHER)


def _groups(wanted: Sequence[Wanted], key: Callable[[Wanted], Any]) -> list[tuple[Any, list[int]]]:
    """Rows by what they have in common, without those that have None."""
    found: dict[Any, list[int]] = {}
    for row, w in enumerate(wanted):
        of = key(w)
        if of is not None:
            found.setdefault(of, []).append(row)
    return list(found.items())


def _margin(cosines: Tensor, of: Tensor, total: Tensor, count: int | None = None) -> Tensor:
    """The cosine of one candidate of each row, minus the mean of the others, whose sum with it is `total`."""
    own = cosines.gather(1, of[:, None])[:, 0]
    return own - (total - own) / ((count or cosines.shape[1]) - 1)
