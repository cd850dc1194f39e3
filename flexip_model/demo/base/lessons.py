"""What the base learns from: a word's picture in one of its styles, over a background, and the prompt that says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..scenes.compose import SIDE, Composer, Recipe
from ..scenes.store import Look, Store
from ..scenes.vocabulary import WORDS, rename, word_of

_STYLE_SHARE = {"3d": 0.5, "cartoon": 0.25, "flat": 0.25}
_OTHER = 0.06
"""Share of pictures of anything else in the store. Their prompts are empty: without a word they cost the words
nothing, and a UNet that only ever drew 150 things would not draw an adapter's others."""
_EMPTY = 0.05
"""Share of the words' prompts that are empty, for guidance."""


class Lessons(Composer):
    """Composes the pictures of words, all words alike often.

    Subjects keep their colors and are neither mirrored nor stretched (our choice: a word is learned from few
    samples, and each of these would have to be learned beside its shape); those without a word are.
    """

    def __init__(self, store: Store, scene_variants: int = 48, size: int = SIDE) -> None:
        super().__init__(rename(store), scene_variants, size)
        self._pictures: dict[str, list[Look]] = {word: [] for word in WORDS}
        self._others: list[Look] = []
        for look in self.store.looks:
            word = word_of(look)
            (self._others if word is None else self._pictures[word]).append(look)
        self.words = [word for word, looks in self._pictures.items() if looks]
        """Those that the store has a picture of."""

    def draw_look(self, rng: np.random.Generator) -> Look:
        """A word's picture: words uniformly, then a style (`_STYLE_SHARE`); now and then something else."""
        if self._others and rng.random() < _OTHER:
            return self._others[rng.integers(len(self._others))]
        looks = self._pictures[self.words[rng.integers(len(self.words))]]
        weights = np.array([_STYLE_SHARE[look.style] for look in looks])
        return looks[rng.choice(len(looks), p=weights / weights.sum())]

    def recipe(self, rng: np.random.Generator, look: Look | None = None, recolor: float = 0.0) -> Recipe:
        """A random recipe; see the class."""
        recipe = super().recipe(rng, look, recolor)
        return recipe if word_of(self.look(recipe)) is None else replace(recipe, stretch=1.0, flip=False)

    def lesson(self, recipe: Recipe, rng: np.random.Generator) -> str:
        """The prompt that a training step reads with the picture: true of it, or empty."""
        if word_of(self.look(recipe)) is None or rng.random() < _EMPTY:
            return ""
        return self.prompt(recipe, rng)
