"""How well an adapter keeps held-out subjects and lets the base follow prompts, subject by subject.

51 held-out instances of Fluent's whose words the base knows; a 3D rendering on white is the reference. Of each subject:

- *own*: six prompts that name its own word (four in 3D on two plain colors and in two scenes, a cartoon, a flat icon),
- *other*: two prompts in 3D that name another word, which the base learned in 3D: reference and prompt disagree,

each from one noise, at six values of the knob (γ; of an IP-Adapter its scale), the same noises at every value and of
every adapter; and a fine sweep of 21 values of one prompt. What judges say of each picture: `judges` and `style`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...images.contact_sheet import draw_sheet
from ..scenes.compose import Composer
from ..scenes.store import Store
from ..stages.vae import to_pictures
from .judge import Judge, to_bytes
from .judges import Gallery, Jury, means
from .shipped import References, Shipped, noises
from .style import Probe, StyleJudge
from .subjects import Cast, Wanted, compose

KNOB = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)
FINE = tuple(k / 20 for k in range(21))
NOISES = 1
"""Fewer do for a comparison on a processor, where a subject and adapter take most of a minute with all of them."""
FINE_PROMPT = 2
"""Which of a subject's own prompts the fine sweep is of: the first in a scene."""
_SHOWN = 8


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
        judge = Judge(weights, self.model.device)
        styles = StyleJudge(judge, Composer(store.split(heldout=False)), self.model.through_vae, probe)
        self.jury = Jury(judge, styles, Gallery(judge, self.composer), self.cast)
        self.references = to_bytes(
            [compose(self.composer, held.reference, "plain:white", seed=0) for held in self.cast.subjects]
        )

    def rows(self, references: References, numbers: Sequence[int]) -> tuple[list[dict[str, Any]], Image.Image]:
        """Everything that is measured of these subjects with an adapter, and a sheet of some of the pictures.

        Args:
            references: of all subjects.
        """
        wanted = [self.cast.wanted(n, self.noises) for n in numbers]
        every = [w for of_one in wanted for w in of_one]
        noise = torch.cat([_noise(n, len(of_one)) for n, of_one in zip(numbers, wanted, strict=True)])
        pictures = self.model.draw(
            [w.prompt for w in every] * len(KNOB),
            noise.repeat(len(KNOB), 1, 1, 1),
            references,
            [w.number for w in every] * len(KNOB),
            [value for value in KNOB for _ in every],
        )
        judged = self.jury.judged(every * len(KNOB), pictures)
        shape = (len(KNOB), len(numbers), len(wanted[0]))
        table = {name: values.reshape(shape) for name, values in judged.items()}
        drawn = pictures.unflatten(0, shape)
        fine = self._fine(references, wanted)
        found = []
        for place, number in enumerate(numbers):
            of_knob = [
                means(wanted[place], {name: values[k, place] for name, values in table.items()})
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
        judged = self.jury.judged(every, pictures)
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
        wanted = [self.cast.wanted(n, self.noises) for n in numbers]
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
            judged = self.jury.judged(asked, drawn)
            each = len(asked) // len(numbers)
            for place, row in enumerate(found):
                part = slice(place * each, (place + 1) * each)
                own, other = means(asked[part], {measure: values[part] for measure, values in judged.items()})
                row[name] = {"own": own, "other": other}
        return found

    def _names(self, number: int) -> dict[str, Any]:
        held = self.cast.subjects[number]
        return {
            "subject": held.word.name,
            "code": held.reference.subject.code,
            "other_word": self.cast.asked_otherwise(number)[0].name,
        }


def _noise(number: int, count: int) -> Tensor:
    return noises(count, seed=1000 + number)


def _path(pictures: Tensor) -> dict[str, Any]:
    """How far a sweep's pictures are from one another, (K + 1, n, 3, h, w) uint8: mean absolute difference of pixels in
    [0, 1], over n. steps: of neighbors, (K,); skips: of those two apart, (K - 1,); far: of the ends."""
    values = pictures.float() / 255

    def apart(by: int) -> list[float]:
        return [round(float((b - a).abs().mean()), 6) for a, b in zip(values[:-by], values[by:], strict=True)]

    return {"steps": apart(1), "skips": apart(2), "far": apart(len(values) - 1)[0]}
