"""The text encoder learns the words before the base starts, as CLIP's of SD1.5 knows them.

Prompts against codes (InfoNCE whose other side is a learned table in place of pictures): the final state of a prompt
must tell its subject among all names, its style and its background. A base that has to learn the words too spends
most of a short training on telling them apart; so this encoder is frozen from here on. Names of one emoji share a
code ("dog" and "dog face"), so the base may be asked by either.
"""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..scenes.backgrounds import COLORS, SCENES
from ..scenes.compose import Composer
from ..scenes.drawn import LENGTH
from ..scenes.lessons import Lessons
from ..scenes.store import STYLES, Store
from ..scenes.words import Words
from ..stages.networks import ENCODER_WIDTH, TEXT_WIDTH, build_text_encoder
from .run import Run
from .stepper import Pace, Stepper, parameters

_SEED = 24
"""Of the prompts, beside the step."""
BACKGROUNDS = (
    *(f"plain:{c}" for c in COLORS),
    *(f"scene:{s}" for s in SCENES),
    *(f"gradient:{a}:{b}" for a, b in permutations(COLORS, 2)),
)


def emoji_codes(store: Store) -> list[str]:
    """The codes of a store's emoji, without their artists."""
    return sorted({s.code.rsplit(":", 1)[-1] for s in store.subjects})


class NamesTrainer(nn.Module):
    """The text encoder and a table of codes for each thing that a prompt says."""

    def __init__(self, vocabulary: int, names: int) -> None:
        super().__init__()
        self.text: Any = build_text_encoder(vocabulary)
        self.project = nn.ModuleList(nn.Linear(TEXT_WIDTH, ENCODER_WIDTH, bias=False) for _ in range(3))
        self.codes = nn.ParameterList(torch.randn(n, ENCODER_WIDTH) for n in (names, len(STYLES), len(BACKGROUNDS)))
        self.logit_scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, ids: Tensor) -> list[Tensor]:
        """(n, l) ids to logits of the name, the style and the background, (n, names), (n, 4) and (n, 110)."""
        state = self.text(ids).pooler_output
        scale = self.logit_scale.clamp(max=4.0).exp()
        return [
            scale * F.normalize(project(state), dim=-1) @ F.normalize(codes, dim=-1).t()
            for project, codes in zip(self.project, self.codes, strict=True)
        ]


def train_names(store: Store, words: Words, pace: Pace, work: Path) -> Any:
    """Train on the prompts of the base's words and of all subjects, half and half; no picture is drawn.

    Returns:
        The text encoder, frozen.
    """
    every, lessons, codes = Composer(store), Lessons(store), emoji_codes(store)
    place = {code: i for i, code in enumerate(codes)}
    model = NamesTrainer(len(words.tokenizer), len(codes))
    inputs = {
        "ids": torch.zeros(pace.batch, LENGTH, dtype=torch.long),
        "truth": torch.zeros(3, pace.batch, dtype=torch.long),
    }

    def loss(i: dict[str, Tensor]) -> dict[str, Tensor]:
        name, style, background = (
            F.cross_entropy(logits, wanted) for logits, wanted in zip(model(i["ids"]), i["truth"], strict=True)
        )
        return {"loss": name + 0.5 * style + 0.5 * background, "name": name, "style": style, "background": background}

    def refill(turn: int) -> None:
        rng = np.random.default_rng((_SEED, turn))
        prompts, truth = [], []
        for number in range(pace.batch):
            composer = lessons if number % 2 else every
            recipe = composer.recipe(rng)
            look = composer.look(recipe)
            prompts.append(composer.prompt(recipe, rng))
            code = look.subject.code.rsplit(":", 1)[-1]
            truth.append((place[code], STYLES.index(look.style), BACKGROUNDS.index(recipe.background)))
        inputs["ids"].copy_(words(prompts)[:, :LENGTH])
        inputs["truth"].copy_(torch.tensor(truth).t())

    stepper = Stepper(parameters(model), loss, inputs, pace)  # type: ignore[arg-type]
    Run("names", work, {"names": stepper}, refill, pace=pace, deadline=math.inf).go()
    stepper.use_average()
    return model.text.eval().requires_grad_(False)
