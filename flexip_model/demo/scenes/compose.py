"""Pictures with a known truth: a subject over a background, and the prompt that says so."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from .backgrounds import COLORS, SCENES, draw_gradient, draw_plain, draw_scene, hue_matrix
from .store import Look, Store

SIDE = 128
STYLE_WORDS = {
    "3d": ("3d render", "3d rendering", "glossy 3d render"),
    "cartoon": ("cartoon", "cartoon drawing", "cartoon picture"),
    "flat": ("flat icon", "flat drawing", "flat icon drawing"),
    "line": ("high contrast drawing", "one-color drawing", "high contrast icon"),
}
RECOLORED = ("with changed colors", "in unusual colors")
_STYLE_SHARE = {"3d": 0.45, "cartoon": 0.45, "flat": 0.33, "line": 0.22}
_WHITE = "plain:white"
ON_WHITE = 0.67
"""Share of references on white, as when their background was removed."""
MIDDLE = 0.51
"""Height of a subject's middle."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines one composed picture.

    Attributes:
        row: look in the store.
        background: "plain:<color>", "gradient:<top>:<bottom>" or "scene:<name>".
        scale: side of the look as a share of the picture's side.
        stretch: the look's width over its height.
        x, y: center of the look as shares of the picture.
        flip, angle: mirrored; turned by degrees, counter-clockwise.
        hue: turn of the subject's hues, 0 to 1; 0 leaves the colors.
        seed: of the background's variation.
    """

    row: int
    background: str
    scale: float
    stretch: float
    x: float
    y: float
    flip: bool
    angle: float
    hue: float
    seed: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def draw_background(name: str, seed: int, size: int = SIDE) -> Image.Image:
    """The background of a recipe as an RGB image."""
    rng = np.random.default_rng(seed)
    kind, *rest = name.split(":")
    if kind == "plain":
        return draw_plain(rest[0], rng, size)
    if kind == "gradient":
        return draw_gradient(rest[0], rest[1], rng, size)
    return draw_scene(rest[0], rng, size)


class Composer:
    """Draws recipes, the pictures for them, and the prompts that describe them."""

    def __init__(self, store: Store, scene_variants: int = 48, size: int = SIDE) -> None:
        """`scene_variants` pictures of each scene are drawn once and reused (mirrored or not)."""
        self.store = store
        self.size = size
        self.scene_variants = scene_variants
        self._scenes: dict[tuple[str, int], Image.Image] = {}
        self._looks = {x.row: x for x in store.looks}
        self._subjects = store.subjects

    def look(self, recipe: Recipe) -> Look:
        """The look that a recipe draws."""
        return self._looks[recipe.row]

    def background(self, name: str, seed: int) -> Image.Image:
        if not name.startswith("scene:"):
            return draw_background(name, seed, self.size)
        key = (name, seed % self.scene_variants)
        if key not in self._scenes:
            self._scenes[key] = draw_background(name, key[1], self.size)
        image = self._scenes[key]
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if seed // self.scene_variants % 2 else image

    def draw_background_name(self, rng: np.random.Generator) -> str:
        kind = rng.random()
        colors = list(COLORS)
        if kind < 0.45:
            return f"plain:{colors[rng.integers(len(colors))]}"
        if kind < 0.55:
            first, second = rng.choice(len(colors), 2, replace=False)
            return f"gradient:{colors[first]}:{colors[second]}"
        return f"scene:{list(SCENES)[rng.integers(len(SCENES))]}"

    def draw_look(self, rng: np.random.Generator) -> Look:
        """A look: subjects uniformly, then a style (`_STYLE_SHARE`), then one of its pictures."""
        subject = self._subjects[rng.integers(len(self._subjects))]
        styles = self.store.styles_of(subject.code)
        weights = np.array([_STYLE_SHARE[s] for s in styles])
        looks = self.store.looks_of(subject.code, styles[rng.choice(len(styles), p=weights / weights.sum())])
        return looks[rng.integers(len(looks))]

    def recipe(self, rng: np.random.Generator, look: Look | None = None, recolor: float = 0.35) -> Recipe:
        """A random recipe; with probability `recolor` the subject's hues are turned (never line drawings').

        The subject is large and near the middle: our choice, because a model this small learns shapes late when
        their place varies too. Half the looks are stretched, so that there are more shapes than subjects.
        """
        look = look or self.draw_look(rng)
        turn = rng.random() < recolor and look.style != "line"
        return Recipe(
            row=look.row,
            background=self.draw_background_name(rng),
            scale=float(rng.uniform(0.72, 0.98)),
            stretch=float(np.exp(rng.normal(0, 0.15))) if rng.random() < 0.5 else 1.0,
            x=float(rng.uniform(0.48, 0.52)),
            y=float(rng.uniform(MIDDLE - 0.02, MIDDLE + 0.02)),
            flip=bool(rng.random() < 0.5),
            angle=float(rng.normal(0, 4)),
            hue=float(rng.uniform(0.1, 0.9)) if turn else 0.0,
            seed=int(rng.integers(1 << 30)),
        )

    def picture(self, recipe: Recipe) -> Image.Image:
        """The composed RGB picture of a recipe."""
        return self.picture_and_mask(recipe)[0]

    def picture_and_mask(self, recipe: Recipe) -> tuple[Image.Image, Image.Image]:
        """The composed RGB picture, and the subject's alpha in it as an L picture."""
        image = self.background(recipe.background, recipe.seed).copy()
        look = self.look(recipe)
        subject = self.store.picture(look)
        if look.style == "line":
            dark = np.asarray(image.resize((8, 8))).mean() < 95
            subject.paste((245, 245, 245) if dark else (15, 15, 15), (0, 0, *subject.size))
            subject.putalpha(self.store.picture(look).getchannel("A"))
        elif recipe.hue:
            alpha = subject.getchannel("A")
            matrix = np.hstack([hue_matrix(recipe.hue), np.zeros((3, 1), np.float32)])
            subject = subject.convert("RGB").convert("RGB", tuple(float(v) for v in matrix.flatten()))
            subject.putalpha(alpha)
        if recipe.flip:
            subject = subject.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        side = recipe.scale * self.size
        wide, high = (max(8, round(side * recipe.stretch**power)) for power in (0.5, -0.5))
        subject = subject.resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=2.0)
        if abs(recipe.angle) > 0.5:
            subject = subject.rotate(recipe.angle, Image.Resampling.BILINEAR)
        left, top = round(recipe.x * self.size - wide / 2), round(recipe.y * self.size - high / 2)
        image.paste(subject, (left, top), subject)
        mask = Image.new("L", image.size)
        mask.paste(subject.getchannel("A"), (left, top))
        return image, mask

    def prompt(self, recipe: Recipe, rng: np.random.Generator) -> str:
        """A prompt that is true of the picture; wording varies and parts are sometimes left unsaid."""
        look = self.look(recipe)
        words = STYLE_WORDS[look.style]
        style = words[0] if rng.random() < 0.7 else words[rng.integers(len(words))]
        if recipe.hue and rng.random() < 0.7:
            name = f"{look.subject.name} {RECOLORED[rng.integers(len(RECOLORED))]}"
        else:
            name = look.subject.name
        place = self._background_words(recipe.background, rng)
        said_style, said_place = rng.random() < 0.9, rng.random() < 0.92
        article = "an" if name[0] in "aeiou" else "a"
        form = rng.random()
        if not said_style:
            text = f"{article} {name}"
        elif form < 0.75:
            text = f"a {style} of {article} {name}"
        else:
            text = f"{name}, {style}"
        if said_place:
            text += f", {place}" if "," in text else f" {place}"
        return text

    def _background_words(self, background: str, rng: np.random.Generator) -> str:
        kind, *rest = background.split(":")
        if kind == "plain":
            forms = ("on a plain {} background", "on a {} background", "in front of a {} wall")
            return forms[0 if rng.random() < 0.4 else rng.integers(3)].format(rest[0])
        if kind == "gradient":
            return f"on a gradient from {rest[0]} to {rest[1]}"
        words = SCENES[rest[0]][1]
        return words[rng.integers(len(words))]

    def variant(self, recipe: Recipe, rng: np.random.Generator) -> Recipe:
        """Another picture of the same subject in the same colors: another animation frame where there is one,
        turned, stretched, in another size, on another background; half of the time in any of its styles, so that a 3D
        reference also leads to a drawing, and of these every second time in the target's own size and place, so that
        the style is all that the prompt decides. Never mirrored against the target: a short training then lays the
        subject over its own mirror image at middle γ."""
        look = self.look(recipe)
        restyled = rng.random() < 0.5 and not recipe.hue
        styles = self.store.styles_of(look.subject.code)
        style = styles[rng.integers(len(styles))] if restyled else look.style
        looks = self.store.looks_of(look.subject.code, style)
        other = self.recipe(rng, looks[rng.integers(len(looks))], recolor=0)
        background = self._behind(other, rng)
        if restyled and rng.random() < 0.5:
            return replace(recipe, row=other.row, background=background)
        return replace(other, hue=recipe.hue, flip=recipe.flip, angle=float(rng.normal(0, 10)), background=background)

    def same(self, recipe: Recipe, rng: np.random.Generator) -> Recipe:
        """The same picture of the subject, in the same size and place, so that what P says of a place is what the
        target shows there (our choice: where size and place differ, a short training blurs)."""
        return replace(recipe, background=self._behind(recipe, rng))

    def moved(self, recipe: Recipe, rng: np.random.Generator) -> Recipe:
        """The same picture of the subject elsewhere: in another size, place and turn."""
        scale = float(rng.uniform(0.45, 0.95))
        x, y = (float(rng.uniform(0.46 * scale, 1 - 0.46 * scale)) for _ in range(2))
        return replace(
            recipe, scale=scale, x=x, y=y, angle=float(rng.normal(0, 12)), background=self._behind(recipe, rng)
        )

    @staticmethod
    def _behind(recipe: Recipe, rng: np.random.Generator) -> str:
        """A reference's background: white two times in three, as when it was removed, else the recipe's."""
        return _WHITE if rng.random() < ON_WHITE else recipe.background


def to_array(image: Image.Image) -> np.ndarray:
    """RGB picture as uint8, (3, height, width)."""
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
