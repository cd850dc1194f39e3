"""How well an adapter keeps held-out subjects and lets the base follow prompts, subject by subject.

51 held-out instances of Fluent's whose words the base knows; a 3D rendering on white is the reference. Of each subject:

- *own*: six prompts that name its own word (four in 3D on two plain colors and in two scenes, a cartoon, a flat icon),
- *other*: two prompts in 3D that name another word, which the base learned in 3D: reference and prompt disagree,

each from four noises, at six values of the knob (γ; of an IP-Adapter its scale), the same noises at every value and of
every adapter; and a fine sweep of 21 values of one prompt. What judges say of each picture: `judges` and `style`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...images.contact_sheet import draw_sheet
from ..scenes.compose import Composer
from ..scenes.store import Store
from ..stages.vae import to_pictures
from .judge import Judge, raw_pixels, to_bytes
from .judges import BackgroundJudge, Gallery
from .shipped import References, Shipped, noises
from .style import Probe, StyleJudge
from .subjects import JUDGED_STYLES, Asked, Cast, Word, compose

KNOB = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)
FINE = tuple(k / 20 for k in range(21))
NOISES = 4
"""Fewer do for a comparison on a processor, where a subject and adapter take most of a minute with all of them."""
FINE_PROMPT = 2
"""Which of a subject's own prompts the fine sweep is of: the first in a scene."""
_PART = 1024
_SHOWN = 8

Measures = dict[str, float]


class Wanted(NamedTuple):
    """A picture that is asked for: of which subject, by which word (its own or another), how."""

    number: int
    word: Word
    asked: Asked
    own: bool

    @property
    def prompt(self) -> str:
        return self.asked.prompt(self.word.name)


class Evaluation:
    """The model, the judges and the held-out subjects, all on one device.

    Args:
        folder: what `export` wrote.
        store: all drawings.
        weights: the judge's file.
        device: the card where there is one, by default.
        probe: the style judge's, where it is fitted already.

    Attributes:
        noises: from how many noises each prompt is drawn; may be set.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        weights: Path,
        device: torch.device | None = None,
        probe: Probe | None = None,
    ) -> None:
        self.noises = NOISES
        self.model = Shipped(folder, device)
        self.cast = Cast(store)
        self.composer = Composer(store)
        self.judge, self.backgrounds = Judge(weights, self.model.device), BackgroundJudge()
        self.styles = StyleJudge(self.judge, Composer(store.split(heldout=False)), self.model.through_vae, probe)
        self.gallery = Gallery(self.judge, self.composer)
        self.references = to_bytes(
            [compose(self.composer, held.reference, "plain:white", seed=0) for held in self.cast.subjects]
        )

    def wanted(self, number: int) -> list[Wanted]:
        """A subject's 24 pictures by its own word, then its 8 by another; each prompt `noises` times."""
        other, otherwise = self.cast.asked_otherwise(number)
        own = [Wanted(number, self.cast.subjects[number].word, a, True) for a in self.cast.asked(number)]
        return [w for w in (*own, *(Wanted(number, other, a, False) for a in otherwise)) for _ in range(self.noises)]

    def rows(self, references: References, numbers: Sequence[int]) -> tuple[list[dict[str, Any]], Image.Image]:
        """Everything that is measured of these subjects with an adapter, and a sheet of some of the pictures.

        Args:
            references: of all subjects.
        """
        wanted = [self.wanted(n) for n in numbers]
        every = [w for of_one in wanted for w in of_one]
        noise = torch.cat([_noise(n, len(of_one)) for n, of_one in zip(numbers, wanted, strict=True)])
        pictures = self.model.draw(
            [w.prompt for w in every] * len(KNOB),
            noise.repeat(len(KNOB), 1, 1, 1),
            references,
            [w.number for w in every] * len(KNOB),
            [value for value in KNOB for _ in every],
        )
        judged = self.judged(every * len(KNOB), pictures)
        shape = (len(KNOB), len(numbers), len(wanted[0]))
        table = {name: values.reshape(shape) for name, values in judged.items()}
        drawn = pictures.unflatten(0, shape)
        fine = self._fine(references, wanted)
        found = []
        for place, number in enumerate(numbers):
            of_knob = [
                self._means(wanted[place], {name: values[k, place] for name, values in table.items()})
                for k in range(len(KNOB))
            ]
            own = [n for n, w in enumerate(wanted[place]) if w.own]
            found.append(
                {
                    **self._names(number),
                    "own": [of_own for of_own, _ in of_knob],
                    "other": [of_other for _, of_other in of_knob],
                    "grid": _path(drawn[:, place, own]),
                    "fine": fine[place],
                }
            )
        first = FINE_PROMPT * self.noises
        shown = range(min(_SHOWN, len(numbers)))
        sheet = draw_sheet(
            [to_pictures(drawn[:, n, first].cpu().float() / 127.5 - 1) for n in shown],
            KNOB,
            to_pictures(self.references[[numbers[n] for n in shown]].float() / 127.5 - 1),
        )
        return found, sheet

    def _fine(self, references: References, wanted: Sequence[Sequence[Wanted]]) -> list[dict[str, Any]]:
        """Of every subject the sweep of one prompt: its path, and what judges say along it."""
        first, count = FINE_PROMPT * self.noises, len(FINE)
        ones = [of_one[first] for of_one in wanted]
        noise = torch.cat([_noise(w.number, len(of))[first : first + 1] for w, of in zip(ones, wanted, strict=True)])
        every = [w for w in ones for _ in FINE]
        pictures = self.model.draw(
            [w.prompt for w in every],
            noise.repeat_interleave(count, 0),
            references,
            [w.number for w in every],
            FINE * len(ones),
        )
        judged = self.judged(every, pictures)
        return [
            {
                **_path(pictures[start : start + count, None]),
                **{m: np.round(judged[m][start : start + count], 4).tolist() for m in ("preservation", "fidelity")},
            }
            for start in range(0, len(every), count)
        ]

    def baselines(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Measures of these subjects without an adapter, of copies of their references, and of the true pictures
        through the VAE."""
        wanted = [self.wanted(n) for n in numbers]
        every = [w for of_one in wanted for w in of_one]
        once = [w for of_one in wanted for w in of_one[:: self.noises]]
        noise = torch.cat([_noise(n, len(of_one)) for n, of_one in zip(numbers, wanted, strict=True)])
        true = [
            compose(self.composer, (w.word.looks.get(w.asked.style) or w.word.looks["3d"])[0], w.asked.background)
            for w in once
        ]
        pictures = {
            "no_adapter": (every, self.model.draw([w.prompt for w in every], noise)),
            "copy": (once, self.references[[w.number for w in once]]),
            "through_vae": (once, self.model.through_vae(to_bytes(true))),
        }
        found: list[dict[str, Any]] = [self._names(number) for number in numbers]
        for name, (asked, drawn) in pictures.items():
            judged = self.judged(asked, drawn)
            each = len(asked) // len(numbers)
            for place, row in enumerate(found):
                part = slice(place * each, (place + 1) * each)
                own, other = self._means(asked[part], {measure: values[part] for measure, values in judged.items()})
                row[name] = {"own": own, "other": other}
        return found

    def _names(self, number: int) -> dict[str, Any]:
        held = self.cast.subjects[number]
        return {
            "subject": held.word.name,
            "code": held.reference.subject.code,
            "other_word": self.cast.asked_otherwise(number)[0].name,
        }

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
        pictures = pictures.to(self.model.device)
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
            note("following", rows, _margin(cosines[:, :], last, neither, len(words)))
        chances = self.styles(pictures)
        style = torch.tensor([JUDGED_STYLES.index(w.asked.style) for w in wanted], device=chances.device)
        found["background"][:] = self.backgrounds.right(pictures, [w.asked.background for w in wanted])
        note("style", list(range(len(wanted))), chances.argmax(1) == style)
        chance = chances.gather(1, style[:, None])[:, 0].double().cpu().numpy()
        found["fidelity"][:] = found["background"] * chance
        return found

    @staticmethod
    def _means(wanted: Sequence[Wanted], judged: dict[str, np.ndarray]) -> tuple[Measures, Measures]:
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

        def means(rows: np.ndarray, names: Sequence[str]) -> Measures:
            return {name: round(float(np.nanmean(every[name][rows])), 4) for name in names}

        return means(own, OWN), means(~own, OTHER)


PER_PICTURE = (
    *("first", "first_raw", "preservation", "background", "style", "fidelity"),
    *("concept", "concept_any", "asked", "kept", "following"),
)
OWN = (
    *("first", "first_raw", "preservation", "concept", "concept_any", "background", "style", "text", "fidelity"),
    *("both", *(f"style_{style}" for style in JUDGED_STYLES)),
)
OTHER = ("asked", "kept", "preservation", "following", "background", "style", "text", "fidelity")


def _noise(number: int, count: int) -> Tensor:
    return noises(count, seed=1000 + number)


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


def _path(pictures: Tensor) -> dict[str, Any]:
    """How far a sweep's pictures are from one another, (K + 1, n, 3, h, w) uint8: mean absolute difference of pixels in
    [0, 1], over n. steps: of neighbors, (K,); skips: of those two apart, (K - 1,); far: of the ends."""
    values = pictures.float() / 255

    def apart(by: int) -> list[float]:
        return [round(float((b - a).abs().mean()), 6) for a, b in zip(values[:-by], values[by:], strict=True)]

    return {"steps": apart(1), "skips": apart(2), "far": apart(len(values) - 1)[0]}
