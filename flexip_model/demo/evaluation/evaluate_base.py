"""The base alone, on subjects that it was trained on: does it draw what a prompt names?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...images.contact_sheet import draw_cells
from ..scenes.compose import Composer
from ..stages.sampling import sample
from ..stages.vae import psnr, through_vae
from .evaluate import CONCEPTS, STEPS, Evaluation
from .judges import BACKGROUNDS, JUDGED_STYLES, Asked, compose

PER_STYLE = 30


def base_figures(evaluation: Evaluation, out: Path) -> dict[str, Any]:
    """Shares right per kind of attribute, for each style; `out/base.png` shows the first pictures.

    subject: the judge's first choice among the subject's true picture and 50 others', all in the style and over the
    background that the prompt asks for; chance is 0.02.
    """
    rng = np.random.default_rng(51)
    seen, model = evaluation.seen, evaluation.model
    figures: dict[str, Any] = {"prompts_per_style": PER_STYLE}
    rows = []
    for style in JUDGED_STYLES:
        subjects = [s for s in seen.store.subjects if style in seen.store.styles_of(s.code)]
        named = [subjects[i] for i in rng.choice(len(subjects), PER_STYLE, replace=False)]
        asked = [Asked(style, BACKGROUNDS[i]) for i in rng.integers(len(BACKGROUNDS), size=PER_STYLE)]
        prompts = [a.prompt(s.name) for a, s in zip(asked, named, strict=True)]
        pictures = sample(model.base, model.vae, model.words, prompts, seed=int(rng.integers(1 << 30)), steps=STEPS)
        rows.append(pictures[:10])
        first = []
        for a, subject, vector in zip(asked, named, evaluation.judge(pictures), strict=True):
            others = [s for s in subjects if s.concept != subject.concept]
            shown = [subject, *(others[i] for i in rng.choice(len(others), CONCEPTS - 1, replace=False))]
            candidates = [compose(seen, s, a, 1) for s in shown]
            first.append(int((evaluation.judge([c for c in candidates if c is not None]) @ vector).argmax()) == 0)
        background = [evaluation.backgrounds.right(p, a.background) for p, a in zip(pictures, asked, strict=True)]
        chances = evaluation.styles(pictures)
        figures[style] = {
            "subject": float(np.mean(first)),
            "background": float(np.mean(background)),
            "style": round(float((chances.argmax(-1) == JUDGED_STYLES.index(style)).float().mean()), 4),
        }
    draw_cells([("", picture) for row in rows for picture in row], len(rows[0])).save(out / "base.png")
    figures["judges_on_true_pictures"] = _true_pictures(evaluation)
    return figures


def _true_pictures(evaluation: Evaluation, count: int = 120) -> dict[str, float]:
    """How often the judges themselves are right, on composed pictures of held-out subjects."""
    rng, composer = np.random.default_rng(52), evaluation.composer
    right = []
    for number in range(count):
        asked = Asked("3d", BACKGROUNDS[number % len(BACKGROUNDS)])
        picture = compose(composer, evaluation.subjects[int(rng.integers(CONCEPTS))], asked, int(rng.integers(1 << 30)))
        assert picture is not None  # every subject has a 3d picture
        right.append(evaluation.backgrounds.right(picture, asked.background))
    return {"background": round(float(np.mean(right)), 4), "style": round(evaluation.styles.accuracy(composer), 4)}


def vae_figures(evaluation: Evaluation, out: Path) -> dict[str, float]:
    """PSNR in dB on composed pictures of held-out and of trained subjects; `out/vae.png` shows eight, drawn again."""
    composer: Composer = evaluation.composer
    rng = np.random.default_rng(77)
    originals: list[Image.Image] = [composer.picture(composer.recipe(rng, recolor=0)) for _ in range(8)]
    vae = evaluation.model.vae
    draw_cells([("", picture) for picture in originals + through_vae(vae, originals)], len(originals)).save(
        out / "vae.png"
    )
    return {"heldout": round(psnr(vae, composer), 2), "seen": round(psnr(vae, evaluation.seen), 2)}
