"""Who is drawn and what is asked: the base's words with their drawings, the held-out instances, the prompts.

The base's vocabulary is read here alone (`name_of`), so that another one needs no other change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..scenes.backgrounds import COLORS, SCENES
from ..scenes.compose import MIDDLE, STYLE_WORDS, Composer
from ..scenes.concepts import heldout_instances
from ..scenes.store import Look, Store
from ..scenes.vocabulary import WORDS

JUDGED_STYLES = ("3d", "cartoon", "flat")
"""The base's; drawings of one color are left to the encoders and adapters, and nobody asks for them here."""
BACKGROUNDS = (*(f"plain:{name}" for name in COLORS), *(f"scene:{name}" for name in SCENES))
_WORD_OF = {code: word for word, code in WORDS.items()}
CONCEPTS = 51
"""A subject and 50 distractors: those that a judge chooses among."""


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for beside the subject."""

    style: str
    background: str

    def prompt(self, name: str) -> str:
        """The prompt, in the first words of each style and place."""
        kind, where = self.background.split(":")
        place = f"on a plain {where} background" if kind == "plain" else SCENES[where][1][0]
        return f"a {STYLE_WORDS[self.style][0]} of {'an' if name[0] in 'aeiou' else 'a'} {name} {place}"


@dataclass(frozen=True, eq=False)
class Word:
    """A word that the base knows.

    Attributes:
        name: as prompts say it.
        concept: of the emoji that shows it; words of one concept are never each other's distractors.
        looks: style to the drawings that show it, held-out ones among them.
        learned: the styles in which the base was trained on it.
        favored: one of `WORDS`, what people try first.
    """

    name: str
    concept: str
    looks: Mapping[str, tuple[Look, ...]]
    learned: frozenset[str]
    favored: bool


class Wanted(NamedTuple):
    """A picture that is asked for: of which subject, by which word (its own or another), how."""

    number: int
    word: Word
    asked: Asked
    own: bool

    @property
    def prompt(self) -> str:
        return self.asked.prompt(self.word.name)


@dataclass(frozen=True)
class Held:
    """A held-out instance whose word the base knows: one of Fluent's.

    Attributes:
        reference: its still 3D rendering.
    """

    word: Word
    reference: Look


def is_heldout(look: Look) -> bool:
    """Whether encoders and adapters, and the base, never read it."""
    return (look.subject.artist, look.subject.concept) in heldout_instances()


def name_of(look: Look) -> str | None:
    """The word that the base's prompts call a drawing by; None where the base knows no word for it.

    Our vocabulary: every emoji's own name, but for those that have a word in `WORDS`.
    """
    code = look.subject.code.rsplit(":", 1)[-1]
    return _WORD_OF.get(code, look.subject.name)


def words_of(store: Store) -> list[Word]:
    """The base's words that a store has drawings of: those of `WORDS` first, then the others by name.

    A word is shown by every still drawing in a judged style that `name_of` calls so, whoever drew it.
    """
    named: dict[str, list[Look]] = {word: [] for word in WORDS}
    for look in store.looks:
        name = None if look.frame or look.style not in JUDGED_STYLES else name_of(look)
        if name is not None:
            named.setdefault(name, []).append(look)
    order = [*WORDS, *sorted(set(named) - set(WORDS))]
    found = []
    for name in order:
        looks = named[name]
        if looks:
            styles = {style: tuple(x for x in looks if x.style == style) for style in JUDGED_STYLES}
            learned = frozenset(x.style for x in looks if not is_heldout(x))
            found.append(
                Word(name, looks[0].subject.concept, {s: x for s, x in styles.items() if x}, learned, name in WORDS)
            )
    return found


class Cast:
    """The words and the held-out instances of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.words = words_of(store)

    @cached_property
    def subjects(self) -> list[Held]:
        """The first `CONCEPTS` held-out instances of different concepts, in the vocabulary's order."""
        found: dict[str, Held] = {}
        for word in self.words:
            for look in word.looks.get("3d", ()):
                if look.subject.artist == "fluent" and is_heldout(look):
                    found.setdefault(word.concept, Held(word, look))
        return list(found.values())[:CONCEPTS]

    @cached_property
    def others(self) -> list[Word]:
        """Favored words that the base learned in 3D, none of them of a subject's concept."""
        taken = {held.word.concept for held in self.subjects}
        return [w for w in self.words if w.favored and "3d" in w.learned and w.concept not in taken]

    def asked(self, number: int) -> list[Asked]:
        """The six prompts of a subject, which name its own word: four in its own style, a cartoon, a flat icon."""
        rng = np.random.default_rng((41, number))
        colors = [f"plain:{list(COLORS)[i]}" for i in rng.permutation(len(COLORS))[:4]]
        scenes = [f"scene:{list(SCENES)[i]}" for i in rng.permutation(len(SCENES))[:2]]
        in_3d = [Asked("3d", background) for background in (*colors[:2], *scenes)]
        return [*in_3d, Asked("cartoon", colors[2]), Asked("flat", colors[3])]

    def asked_otherwise(self, number: int) -> tuple[Word, list[Asked]]:
        """Another word than the subject's own, and two prompts that name it."""
        rng = np.random.default_rng((43, number))
        word = self.others[rng.integers(len(self.others))]
        color, scene = (names[rng.integers(len(names))] for names in (list(COLORS), list(SCENES)))
        return word, [Asked("3d", f"plain:{color}"), Asked("3d", f"scene:{scene}")]

    def wanted(self, number: int, noises: int) -> list[Wanted]:
        """A subject's pictures by its own word, six times `noises`, then those by another, twice as many as noises."""
        other, otherwise = self.asked_otherwise(number)
        own = [Wanted(number, self.subjects[number].word, a, True) for a in self.asked(number)]
        return [w for w in (*own, *(Wanted(number, other, a, False) for a in otherwise)) for _ in range(noises)]


def compose(composer: Composer, look: Look, background: str, seed: int = 1) -> Image.Image:
    """A true picture: a drawing over a background, framed as targets are."""
    recipe = composer.recipe(np.random.default_rng(seed), look, recolor=0)
    return composer.picture(
        replace(recipe, background=background, scale=0.8, stretch=1.0, x=0.5, y=MIDDLE, flip=False, angle=0.0)
    )


def true_pictures(composer: Composer, looks: Iterable[Look], background: str) -> list[Image.Image]:
    """`compose` of several drawings over one background."""
    return [compose(composer, look, background) for look in looks]
