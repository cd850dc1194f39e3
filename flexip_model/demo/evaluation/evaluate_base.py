"""The base alone, and the judges themselves: does it draw what a prompt names, and would they see it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...images.contact_sheet import draw_cells
from ..scenes.compose import Composer
from ..stages.vae import to_pictures
from .evaluate import Evaluation
from .judge import to_bytes
from .shipped import noises
from .style import examples
from .subjects import BACKGROUNDS, CONCEPTS, JUDGED_STYLES, Asked, Word, compose

PROMPTS = {"3d": 25, "cartoon": 10, "flat": 10}
"""How many of the words are asked for over each of the 20 backgrounds, in each style."""
JUDGED = 120
"""True pictures whose backgrounds are judged, and a quarter as many of each style through the VAE for its PSNR."""
_SHOWN = 16


def base_figures(evaluation: Evaluation, out: Path) -> dict[str, Any]:
    """Shares right of the favored words' prompts in each style, and ("every") of every word's in 3D;
    `out/base-STYLE.jpg` shows some of the pictures.

    Over each background 51 words are drawn, all words alike often, no two of one concept, and the first of them are
    asked for. concept: the judge's first choice among the 51, each by its best drawing in that style. `unseen` has the
    same of the words that the base did not learn in that style, because their drawing is held out; `words` lists of
    how many prompts each word was recognized, and how many there were.
    """
    favored = [word for word in evaluation.cast.words if word.favored]
    found = {style: _figures(evaluation, favored, style, out / f"base-{style}.jpg") for style in JUDGED_STYLES}
    return found | {"every": _figures(evaluation, evaluation.cast.words, "3d", out / "base-every.jpg")}


def _figures(evaluation: Evaluation, known: list[Word], style: str, sheet: Path) -> dict[str, Any]:
    rng = np.random.default_rng((51, JUDGED_STYLES.index(style)))
    words = [word for word in known if style in word.looks]
    groups = _groups(words, rng)
    asked = [(word, Asked(style, b)) for b, group in groups.items() for word in group[: PROMPTS[style]]]
    pictures = evaluation.model.draw(
        [a.prompt(word.name) for word, a in asked], noises(len(asked), seed=2000 + JUDGED_STYLES.index(style))
    )
    seen = evaluation.jury.judge(pictures)
    right: list[bool] = []
    for background, group in groups.items():
        here = seen[len(right) : len(right) + len(group[: PROMPTS[style]])]
        best = evaluation.jury.gallery.cosines(here, group, background, (style,)).argmax(1).tolist()
        right += [choice == place for place, choice in enumerate(best)]
    some = rng.permutation(len(asked))[:_SHOWN].tolist()
    cells = zip(some, to_pictures(pictures[some].cpu().float() / 127.5 - 1), strict=True)
    draw_cells([(asked[n][0].name, picture) for n, picture in cells], 8).save(sheet, quality=90)
    unseen = [ok for ok, (word, _) in zip(right, asked, strict=True) if style not in word.learned]
    counts: dict[str, list[int]] = {}
    for ok, (word, _) in zip(right, asked, strict=True):
        of_word = counts.setdefault(word.name, [0, 0])
        of_word[0] += ok
        of_word[1] += 1
    return {
        "prompts": len(asked),
        "concept": _share(right),
        "unseen": {"prompts": len(unseen), "concept": _share(unseen)},
        "style": _share((evaluation.jury.styles(pictures).argmax(-1) == JUDGED_STYLES.index(style)).tolist()),
        "background": _share(evaluation.jury.backgrounds.right(pictures, [a.background for _, a in asked]).tolist()),
        "words": dict(sorted(counts.items())),
    }


def _groups(words: list[Word], rng: np.random.Generator) -> dict[str, list[Word]]:
    """Background to up to 51 words of different concepts; words take turns at being asked for."""
    waiting: list[Word] = []
    found = {}
    for background in BACKGROUNDS:
        group: list[Word] = []
        passed: list[Word] = []
        size = min(CONCEPTS, len({word.concept for word in words}))
        while len(group) < size:
            if not waiting:
                waiting = [words[i] for i in rng.permutation(len(words))]
            word = waiting.pop(0)
            fits = word.concept not in {other.concept for other in group}
            (group if fits else passed).append(word)
        waiting = passed + waiting
        found[background] = [group[i] for i in rng.permutation(len(group))]
    return found


def judges_figures(evaluation: Evaluation) -> dict[str, Any]:
    """How often the judges themselves are right on true pictures of held-out instances, as they are and through the
    VAE; the VAE's PSNR in dB; and the style judge's probe, so that a check need not fit it anew."""
    store = evaluation.composer.store
    heldout, seen = Composer(store.split(heldout=True)), Composer(store.split(heldout=False))
    through = evaluation.model.through_vae
    rng = np.random.default_rng(52)
    looks = [held.reference for held in evaluation.cast.subjects]
    asked = [BACKGROUNDS[number % len(BACKGROUNDS)] for number in range(JUDGED)]
    pictures = to_bytes(
        [compose(evaluation.composer, looks[rng.integers(len(looks))], b, int(rng.integers(1 << 30))) for b in asked]
    )
    of_heldout, of_seen = (examples(of, JUDGED // 4, 77)[0] for of in (heldout, seen))
    return {
        "background": _share(evaluation.jury.backgrounds.right(pictures, asked).tolist()),
        "style": evaluation.jury.styles.accuracy(heldout),
        "style_through_vae": evaluation.jury.styles.accuracy(heldout, through),
        "probe": evaluation.jury.styles.probe,
        "vae_psnr_db": {"heldout": _psnr(of_heldout, through), "seen": _psnr(of_seen, through)},
    }


def _psnr(pictures: Any, through: Any) -> float:
    """Mean over pictures, 8-bit range."""
    error = (through(pictures).float().cpu() - pictures.float()).square().mean((1, 2, 3)).clamp(min=1e-6)
    return round(float((10 * np.log10(255**2 / error.numpy())).mean()), 2)


def _share(right: list[bool]) -> float | None:
    return round(float(np.mean(right)), 4) if right else None
