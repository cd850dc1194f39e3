"""Recipes as arrays: what a painter on the device reads, drawn by many processes beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...common.errors import FlexIPError
from ...common.prefetch import worker_pool
from .backgrounds import COLORS, SCENES, jitter
from .compose import Composer, Recipe
from .lessons import Lessons
from .store import Store, read_index
from .words import Words

COLUMNS = (
    *("row", "scene", "mirrored", "top_red", "top_green", "top_blue", "red", "green", "blue"),
    *("wide", "high", "x", "y", "flip", "angle", "hue", "line"),
)
"""Of a recipe's row: the look; the scene's picture or -1, and whether it is mirrored; colors of top and bottom where
there is no scene, 0 to 255; size and middle of the look in pixels; mirrored; degrees; turn of hue; one color."""
PROMPTS = 4
LENGTH = 32
"""Token ids that are kept of a prompt: more than any has."""
CHUNK = 512
REFERENCES = ("same", "moved", "variant")
"""Kinds of references: the target's own picture where it is; the same elsewhere, in another size and turn; another
picture of the subject."""


@dataclass
class Drawn:
    """n targets.

    Attributes:
        targets: float32, (n, `COLUMNS`).
        same, moved, variant: references of the targets, of that form; (0, …) where there are none.
        ids: int16, (n, `PROMPTS`, `LENGTH`), prompts that are true of the target, or empty ones.
    """

    targets: NDArray[np.float32]
    same: NDArray[np.float32]
    moved: NDArray[np.float32]
    variant: NDArray[np.float32]
    ids: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.targets)


def join(parts: list[Drawn]) -> Drawn:
    """Parts in one."""
    return Drawn(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Drawn)))


def row_of(composer: Composer, recipe: Recipe) -> list[float]:
    """A recipe as the numbers of `COLUMNS`, rounded as `Composer.picture_and_mask` rounds them."""
    kind, *rest = recipe.background.split(":")
    scene, mirrored, top, bottom = -1, False, (0, 0, 0), (0, 0, 0)
    if kind == "scene":
        variants = composer.scene_variants
        scene = list(SCENES).index(rest[0]) * variants + recipe.seed % variants
        mirrored = bool(recipe.seed // variants % 2)
    else:
        rng = np.random.default_rng(recipe.seed)
        top = jitter(rng, COLORS[rest[0]])
        bottom = top if kind == "plain" else jitter(rng, COLORS[rest[1]])
    side = recipe.scale * composer.size
    wide, high = (max(8, round(side * recipe.stretch**power)) for power in (0.5, -0.5))
    left, above = round(recipe.x * composer.size - wide / 2), round(recipe.y * composer.size - high / 2)
    angle = recipe.angle if abs(recipe.angle) > 0.5 else 0.0
    line = composer.look(recipe).style == "line"
    place = (wide, high, left + wide / 2, above + high / 2)
    return [recipe.row, scene, mirrored, *top, *bottom, *place, recipe.flip, angle, 0.0 if line else recipe.hue, line]


def draw(composer: Composer, words: Words, count: int, seed: tuple[int, ...], references: bool) -> Drawn:
    """Draw `count` targets with their prompts and, where they are wanted, their references."""
    rng = np.random.default_rng(seed)
    recipes = [composer.recipe(rng) for _ in range(count)]
    told = composer.lesson if isinstance(composer, Lessons) else composer.prompt
    ids = words([told(recipe, rng) for recipe in recipes for _ in range(PROMPTS)])
    if not bool((ids[:, LENGTH:] == ids[0, -1]).all()):
        raise FlexIPError(f"a prompt has more than {LENGTH} tokens: learn a tokenizer from this store (stage `data`)")

    def rows(of: list[Recipe]) -> NDArray[np.float32]:
        return np.array([row_of(composer, recipe) for recipe in of], np.float32).reshape(len(of), len(COLUMNS))

    others = {
        kind: rows([getattr(composer, kind)(recipe, rng) for recipe in recipes] if references else [])
        for kind in REFERENCES
    }
    return Drawn(rows(recipes), **others, ids=ids[:, :LENGTH].numpy().astype(np.int16).reshape(count, PROMPTS, LENGTH))


@dataclass(frozen=True)
class Drawing:
    """What processes need to draw: where the store's index and the tokenizer lie, and what is wanted.

    Attributes:
        store, tokenizer: folders.
        lessons: targets for the base (words, without references), else targets for encoders and adapters.
        seed: of the targets; each chunk has its own beside it.
        scene_variants: as the painter's.
    """

    store: Path
    tokenizer: Path
    lessons: bool
    seed: int
    scene_variants: int

    def chunk(self, number: int) -> Drawn:
        """Chunk `number` of `CHUNK` targets."""
        composer, words = _tools(self)
        return draw(composer, words, CHUNK, (self.seed, number), references=not self.lessons)


@cache
def _tools(drawing: Drawing) -> tuple[Composer, Words]:
    store = Store(np.zeros((0, 1, 1, 4), np.uint8), read_index(drawing.store)).split(heldout=False)
    return (Lessons if drawing.lessons else Composer)(store, drawing.scene_variants), Words(drawing.tokenizer)


class Drawer:
    """Draws chunks in processes of its own while the device is busy with other things; with none, when they are asked
    for."""

    def __init__(self, processes: int) -> None:
        self._pool = worker_pool(processes) if processes else None

    def start(self, drawing: Drawing, count: int) -> list[Callable[[], Drawn]]:
        """Begin to draw at least `count` targets; `join` what comes back from the calls."""
        numbers = range(-(-count // CHUNK))
        if self._pool is None:
            return [partial(drawing.chunk, number) for number in numbers]
        return [self._pool.submit(drawing.chunk, number).result for number in numbers]

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
