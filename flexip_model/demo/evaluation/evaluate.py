"""How well the exported model keeps held-out subjects and follows prompts, subject by subject.

51 held-out concepts, one subject each; its 3D picture on white is the reference. Six prompts (four in its own style on
two plain colors and two scenes, one as a flat icon, one as a line drawing) × four noises × six γ, the same noises at
every γ and without the adapter; and one fine sweep of 21 γ. What judges say of each picture: see `judges`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...common.parallel import run
from ...files.safefile import atomic
from ..scenes.backgrounds import COLORS, SCENES
from ..scenes.compose import Composer
from ..scenes.concepts import Subject
from ..scenes.store import Store
from ..stages.sampling import mean_step, sample
from ..stages.vae import through_vae, to_pixels
from .judge import Judge, raw_pixels
from .judges import JUDGED_STYLES, Asked, BackgroundJudge, Gallery, StyleJudge, compose
from .shipped import Shipped

log = logging.getLogger(__name__)

GAMMAS = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)
FINE = tuple(k / 20 for k in range(21))
NOISES = 4
STEPS = 10
CONCEPTS = 51
"""A subject's own reference and 50 distractors."""


def subjects_of(store: Store) -> list[Subject]:
    """One subject for each of the first `CONCEPTS` held-out concepts, in alphabetical order."""
    first: dict[str, Subject] = {}
    for subject in store.subjects:
        first.setdefault(subject.concept, subject)
    return [first[concept] for concept in sorted(first)][:CONCEPTS]


def asked_of(number: int) -> list[Asked]:
    """The six prompts of a subject."""
    rng = np.random.default_rng((41, number))
    colors = [f"plain:{list(COLORS)[i]}" for i in rng.permutation(len(COLORS))[:4]]
    scenes = [f"scene:{list(SCENES)[i]}" for i in rng.permutation(len(SCENES))[:2]]
    return [*(Asked("3d", b) for b in (*colors[:2], *scenes)), Asked("flat", colors[2]), Asked("line", colors[3])]


def reference_of(composer: Composer, subject: Subject) -> Image.Image:
    """A subject's 3D picture on white, with the margin of a target."""
    picture = compose(composer, subject, Asked("3d", "plain:white"), seed=0)
    assert picture is not None  # every subject has a 3d picture
    return picture


class Evaluation:
    """The model, the judges and the held-out subjects.

    Args:
        folder: what `export` wrote.
        still: store of still pictures.
        weights: the judge's file.
    """

    def __init__(self, folder: Path, still: Path, weights: Path) -> None:
        store = Store.open(still)
        self.model = Shipped(folder)
        fluent = store.by("fluent")
        self.composer, self.seen = Composer(fluent.split(heldout=True)), Composer(fluent.split(heldout=False))
        self.subjects = subjects_of(self.composer.store)
        self.judge, self.backgrounds = Judge(weights), BackgroundJudge()
        self.styles = StyleJudge(self.judge, self.seen)
        self.gallery = Gallery(self.judge, self.composer, self.subjects)

    def subject(self, number: int) -> dict[str, Any]:
        """Everything that is measured of one subject; the values of `gammas` are in the order of `GAMMAS`."""
        subject = self.subjects[number]
        six = asked_of(number)
        reference = reference_of(self.composer, subject)
        cls, patches = self.model.features(to_pixels([reference]))

        def features(count: int) -> tuple[Tensor, Tensor]:
            return cls.expand(count, -1), patches.expand(count, -1, -1)

        def figures(gamma: float | None) -> dict[str, float]:
            asked = six * NOISES
            prompts = [a.prompt(subject.name) for a in asked]
            with_adapter: dict[str, Any] = (
                {}
                if gamma is None
                else {
                    "adapter": self.model.adapter,
                    "features": features(len(prompts)),
                    "gammas": [gamma] * len(prompts),
                }
            )
            return self.judged(
                number,
                asked,
                sample(
                    self.model.base,
                    self.model.vae,
                    self.model.words,
                    prompts,
                    seed=1000 + number,
                    steps=STEPS,
                    **with_adapter,
                ),
            )

        scene = six[2].prompt(subject.name)
        fine = sample(
            self.model.base,
            self.model.vae,
            self.model.words,
            [scene] * len(FINE),
            seed=1000 + number,
            adapter=self.model.adapter,
            features=features(len(FINE)),
            gammas=FINE,
            same_noise=True,
            steps=STEPS,
        )
        true = [(a, compose(self.composer, subject, a, seed=0)) for a in six]
        shown = [(a, picture) for a, picture in true if picture is not None]
        return {
            "subject": subject.name,
            "code": subject.code,
            "pixel_steps": np.round(mean_step(fine), 5).tolist(),
            "gammas": [figures(gamma) for gamma in GAMMAS],
            "no_adapter": figures(None),
            "copy": self.judged(number, six, [reference] * len(six)),
            "through_vae": self.judged(
                number, [a for a, _ in shown], through_vae(self.model.vae, [p for _, p in shown])
            ),
        }

    def judged(self, number: int, asked: Sequence[Asked], pictures: Sequence[Image.Image]) -> dict[str, float]:
        """Means over a subject's pictures.

        first, first_raw: share in which the judge, and raw pixels, choose the subject's own reference among all.
        preservation: the judge's cosine with the own reference minus its mean cosine with the others.
        background, style, text: shares right; both right.
        fidelity: probability of the style asked for, 0 where the background is wrong; the same of each style's
            pictures alone as fidelity_3d, fidelity_flat and fidelity_line.
        both: share in which `first` and `text` hold at once.
        """
        seen, raw = self.judge(pictures), raw_pixels(pictures)
        first, first_raw, preservation = [], [], []
        for a, vector, pixels in zip(asked, seen, raw, strict=True):
            candidates, raw_candidates = self.gallery.candidates(Asked("3d", a.background))
            cosines = candidates @ vector
            first.append(int(cosines.argmax()) == number)
            first_raw.append(int((raw_candidates @ pixels).argmax()) == number)
            others = (cosines.sum() - cosines[number]) / (len(cosines) - 1)
            preservation.append(float(cosines[number] - others))
        background = np.array([self.backgrounds.right(p, a.background) for p, a in zip(pictures, asked, strict=True)])
        chances = self.styles(pictures)
        wanted = torch.tensor([JUDGED_STYLES.index(a.style) for a in asked])
        style = (chances.argmax(-1) == wanted).numpy()
        chance = chances[torch.arange(len(asked)), wanted].numpy()
        fidelity = background * chance
        values = {
            "first": first,
            "first_raw": first_raw,
            "preservation": preservation,
            "background": background,
            "style": style,
            "text": background & style,
            "fidelity": fidelity,
            "both": background & style & np.array(first),
            **{f"fidelity_{JUDGED_STYLES[n]}": fidelity[(wanted == n).numpy()] for n in wanted.unique().tolist()},
        }
        return {name: round(float(np.mean(value)), 4) for name, value in values.items()}


def measure(make: partial[Evaluation], rows: Path, numbers: Sequence[int], processes: int) -> list[dict[str, Any]]:
    """The rows of the subjects `numbers`; those that lie in the folder `rows` already are not measured again."""
    rows.mkdir(parents=True, exist_ok=True)
    if any(not _row(rows, number).exists() for number in numbers):
        run(partial(_measure, make, rows, tuple(numbers)), processes, seed=0)
    return [json.loads(_row(rows, number).read_text(encoding="utf-8")) for number in numbers]


def _row(rows: Path, number: int) -> Path:
    return rows / f"subject-{number:02}.json"


def _measure(make: partial[Evaluation], rows: Path, numbers: Sequence[int]) -> None:
    import torch.distributed as distributed

    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    evaluation = make()
    for number in numbers[rank::world]:
        if not _row(rows, number).exists():
            row = evaluation.subject(number)
            with atomic(_row(rows, number)) as path:
                path.write_text(json.dumps(row), encoding="utf-8")
            log.info(f"{number + 1:3} {row['subject']}: first {[g['first'] for g in row['gammas']]}")
