"""What the base learns from: a word's picture in one of its styles, over a background, and the prompt that says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .compose import SIDE, Composer, Recipe
from .store import Look, Store
from .vocabulary import WORDS, rename

_STYLE_SHARE = {"3d": 0.45, "cartoon": 0.25, "flat": 0.2, "line": 0.1}
_FAVORED = 0.4
"""Share of the words' pictures that show one of `WORDS`, what people try first."""
_OTHER = 0.25
"""Share of pictures without a word: any look, frames of animations too, turned in hue, mirrored and stretched. Their
prompts are empty, so they cost the words little, and a UNet that only ever drew what has a name would not draw an
adapter's others."""
_EMPTY = 0.05
"""Share of the words' prompts that are empty, for guidance."""


class Lessons(Composer):
    """Composes the pictures of words, all words alike often but for the favored.

    Subjects with a word keep their colors and are neither mirrored nor stretched (our choice: each of these would have
    to be learned beside the word's shape).
    """

    def __init__(self, store: Store, scene_variants: int = 48, size: int = SIDE) -> None:
        super().__init__(rename(store), scene_variants, size)
        self._pictures: dict[str, list[Look]] = {}
        for look in self.store.looks:
            if not look.frame:
                self._pictures.setdefault(look.subject.name, []).append(look)
        self.words = sorted(self._pictures)
        """Those that the store has a picture of."""
        self._favored = [word for word in WORDS if word in self._pictures]

    def recipe(self, rng: np.random.Generator, look: Look | None = None, recolor: float = 0.0) -> Recipe:
        """A random recipe; see the class."""
        if look is None and rng.random() < _OTHER:
            looks = self.store.looks
            return super().recipe(rng, looks[rng.integers(len(looks))], recolor=0.5)
        recipe = super().recipe(rng, look or self.draw_look(rng), recolor)
        return replace(recipe, stretch=1.0, flip=False)

    def draw_look(self, rng: np.random.Generator) -> Look:
        """A word's picture: a word, then a style (`_STYLE_SHARE`)."""
        words = self._favored if self._favored and rng.random() < _FAVORED else self.words
        looks = self._pictures[words[rng.integers(len(words))]]
        weights = np.array([_STYLE_SHARE[look.style] for look in looks])
        return looks[rng.choice(len(looks), p=weights / weights.sum())]

    def lesson(self, recipe: Recipe, rng: np.random.Generator) -> str:
        """The prompt that a training step reads with the picture: true of it, or empty."""
        plain = not (self.look(recipe).frame or recipe.hue or recipe.flip or recipe.stretch != 1.0)
        return self.prompt(recipe, rng) if plain and rng.random() >= _EMPTY else ""
