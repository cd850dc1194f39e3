"""Backgrounds whose description is known: plain colors, gradients, and ten simple drawn scenes."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (250, 214, 60),
    "green": (62, 160, 75),
    "blue": (45, 100, 210),
    "purple": (130, 70, 175),
    "pink": (246, 160, 190),
    "white": (250, 250, 250),
    "gray": (140, 142, 146),
    "black": (22, 22, 26),
}
"""Plain background colors, sRGB; a drawn background strays from them by at most 10 levels a channel."""

_S = 288
Draw = ImageDraw.ImageDraw
Rng = np.random.Generator


def jitter(rng: Rng, color: tuple[int, int, int], amount: int = 10) -> tuple[int, int, int]:
    return tuple(int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in color)  # type: ignore[return-value]


def _vertical(rng: Rng, top: tuple[int, int, int], bottom: tuple[int, int, int], size: int = _S) -> Image.Image:
    a, b = np.array(jitter(rng, top), np.float32), np.array(jitter(rng, bottom), np.float32)
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    return Image.fromarray(np.broadcast_to(a + (b - a) * ramp, (size, size, 3)).round().astype(np.uint8))


def _hills(rng: Rng, draw: Draw, base: float, height: float, color: tuple[int, int, int]) -> None:
    x = np.arange(_S + 1)
    waves = np.mean([np.sin(x / _S * np.pi * 2 * rng.uniform(0.4, 1.6) + rng.uniform(0, 6)) for _ in range(2)], 0)
    y = _S * (base - height * waves)
    draw.polygon([*zip(x.tolist(), y.tolist(), strict=True), (_S, _S), (0, _S)], fill=jitter(rng, color))


def _disc(draw: Draw, x: float, y: float, r: float, color: tuple[int, int, int]) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=color)


def meadow(rng: Rng) -> Image.Image:
    image = _vertical(rng, (110, 190, 250), (205, 235, 255))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = rng.uniform(0, _S), rng.uniform(0, _S * 0.3)
        for i in range(4):
            _disc(draw, x + i * 14, y + rng.uniform(-5, 5), rng.uniform(9, 17), (255, 255, 255))
    base = rng.uniform(0.48, 0.6)
    _hills(rng, draw, base, 0.05, (120, 190, 80))
    _hills(rng, draw, base + 0.14, 0.04, (90, 170, 60))
    for _ in range(26):
        petal = [(255, 255, 255), (250, 220, 70), (240, 110, 140)][rng.integers(3)]
        _disc(draw, rng.uniform(0, _S), rng.uniform(_S * (base + 0.2), _S), rng.uniform(2.5, 5), petal)
    return image


def beach(rng: Rng) -> Image.Image:
    image = _vertical(rng, (120, 200, 250), (215, 240, 255))
    draw = ImageDraw.Draw(image)
    horizon, shore = rng.uniform(0.35, 0.45), rng.uniform(0.6, 0.68)
    draw.rectangle((0, _S * horizon, _S, _S), fill=jitter(rng, (30, 140, 190)))
    for _ in range(5):
        x, y = rng.uniform(-20, _S), _S * rng.uniform(horizon + 0.03, shore - 0.06)
        draw.rectangle((x, y, x + rng.uniform(25, 70), y + 3), fill=(130, 205, 225))
    _hills(rng, draw, shore - 0.02, 0.015, (235, 250, 250))
    _hills(rng, draw, shore + 0.02, 0.015, (240, 214, 150))
    _disc(draw, rng.uniform(20, _S - 20), _S * rng.uniform(0.08, 0.2), rng.uniform(17, 26), (255, 235, 110))
    return image


def night(rng: Rng) -> Image.Image:
    image = _vertical(rng, (10, 14, 50), (40, 50, 110))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        _disc(draw, rng.uniform(0, _S), rng.uniform(0, _S), rng.uniform(0.8, 2.8), (255, 250, 215))
    x, y, r = rng.uniform(30, _S - 30), rng.uniform(28, _S * 0.3), rng.uniform(20, 30)
    _disc(draw, x, y, r, (250, 240, 190))
    for _ in range(3):
        _disc(draw, x + rng.uniform(-r, r) * 0.55, y + rng.uniform(-r, r) * 0.55, r * 0.17, (225, 212, 155))
    return image


def snow(rng: Rng) -> Image.Image:
    image = _vertical(rng, (165, 195, 220), (215, 228, 240))
    draw = ImageDraw.Draw(image)
    base = rng.uniform(0.5, 0.6)
    for _ in range(6):
        x, h = rng.uniform(0, _S), rng.uniform(35, 75)
        y = _S * (base + 0.03)
        draw.polygon([(x - h * 0.33, y), (x + h * 0.33, y), (x, y - h)], fill=jitter(rng, (75, 115, 115)))
        draw.polygon([(x - h * 0.14, y - h * 0.6), (x + h * 0.14, y - h * 0.6), (x, y - h)], fill=(250, 252, 255))
    _hills(rng, draw, base, 0.03, (232, 240, 250))
    _hills(rng, draw, base + 0.18, 0.03, (250, 252, 255))
    for _ in range(45):
        _disc(draw, rng.uniform(0, _S), rng.uniform(0, _S * 0.75), rng.uniform(2, 4), (255, 255, 255))
    return image


def water(rng: Rng) -> Image.Image:
    image = _vertical(rng, (40, 170, 205), (8, 60, 120))
    rays = Image.new("L", (_S, _S), 0)
    ray = ImageDraw.Draw(rays)
    for _ in range(4):
        x, w, s = rng.uniform(0, _S), rng.uniform(12, 30), rng.uniform(-70, 70)
        ray.polygon([(x, 0), (x + w, 0), (x + s + 2 * w, _S * 0.8), (x + s - w, _S * 0.8)], fill=55)
    image.paste((190, 240, 250), mask=rays.filter(ImageFilter.GaussianBlur(5)))
    draw = ImageDraw.Draw(image)
    for _ in range(18):
        x, y, r = rng.uniform(0, _S), rng.uniform(0, _S), rng.uniform(3, 10)
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(200, 240, 250), width=2)
    for _ in range(12):
        x, h = rng.uniform(0, _S), rng.uniform(25, 70)
        draw.line([(x, _S), (x + rng.uniform(-12, 12), _S - h)], fill=jitter(rng, (20, 130, 95)), width=7)
    return image


def city(rng: Rng) -> Image.Image:
    image = _vertical(rng, (175, 205, 230), (235, 235, 230))
    draw = ImageDraw.Draw(image)
    x = -10.0
    while x < _S:
        w, h = rng.uniform(34, 62), rng.uniform(0.4, 0.88) * _S
        tone = [(95, 105, 125), (130, 120, 120), (80, 95, 110), (150, 130, 115)][rng.integers(4)]
        draw.rectangle((x, _S - h, x + w, _S), fill=jitter(rng, tone))
        for wx in np.arange(x + 7, x + w - 9, 14):
            for wy in np.arange(_S - h + 9, _S * 0.87, 19):
                draw.rectangle((wx, wy, wx + 7, wy + 10), fill=(250, 230, 150) if rng.random() < 0.6 else (60, 70, 90))
        x += w + rng.uniform(0, 6)
    draw.rectangle((0, _S * 0.88, _S, _S), fill=jitter(rng, (85, 85, 90)))
    return image


def forest(rng: Rng) -> Image.Image:
    image = _vertical(rng, (35, 95, 60), (20, 65, 40))
    draw = ImageDraw.Draw(image)
    for depth in range(3):
        for _ in range(4):
            x, w = rng.uniform(0, _S), 6 + depth * 5
            bark = jitter(rng, (70 + depth * 20, 52 + depth * 12, 38))
            draw.rectangle((x - w, 0, x + w, _S * (0.72 + depth * 0.06)), fill=bark)
    for _ in range(26):
        leaves = jitter(rng, (40, 125, 55), 18)
        _disc(draw, rng.uniform(0, _S), rng.uniform(-10, _S * 0.22), rng.uniform(18, 38), leaves)
    _hills(rng, draw, rng.uniform(0.8, 0.86), 0.02, (52, 105, 45))
    return image


def desert(rng: Rng) -> Image.Image:
    image = _vertical(rng, (250, 200, 130), (255, 232, 190))
    draw = ImageDraw.Draw(image)
    _disc(draw, rng.uniform(30, _S - 30), _S * rng.uniform(0.1, 0.25), rng.uniform(20, 30), (255, 250, 220))
    base = rng.uniform(0.5, 0.58)
    _hills(rng, draw, base, 0.05, (225, 160, 85))
    for _ in range(2):
        x, y, h = rng.uniform(0, _S), _S * (base + 0.08), rng.uniform(35, 60)
        green = jitter(rng, (70, 120, 60))
        draw.rounded_rectangle((x - 6, y - h, x + 6, y), 6, fill=green)
        draw.rounded_rectangle((x - 20, y - h * 0.75, x - 12, y - h * 0.35), 4, fill=green)
        draw.rectangle((x - 18, y - h * 0.45, x, y - h * 0.35), fill=green)
    _hills(rng, draw, base + 0.16, 0.05, (205, 130, 60))
    return image


def sunset(rng: Rng) -> Image.Image:
    image = _vertical(rng, (95, 45, 120), (255, 150, 60))
    draw = ImageDraw.Draw(image)
    horizon = rng.uniform(0.62, 0.7)
    _disc(draw, rng.uniform(50, _S - 50), _S * horizon, rng.uniform(32, 48), (255, 220, 110))
    for _ in range(4):
        x, y, w = rng.uniform(-30, _S), _S * rng.uniform(0.08, 0.45), rng.uniform(50, 110)
        draw.rounded_rectangle((x, y, x + w, y + rng.uniform(6, 12)), 5, fill=jitter(rng, (225, 95, 95)))
    draw.rectangle((0, _S * horizon, _S, _S), fill=jitter(rng, (50, 25, 75)))
    for _ in range(10):
        x, y = rng.uniform(-10, _S), _S * rng.uniform(horizon + 0.03, 1)
        draw.rectangle((x, y, x + rng.uniform(20, 60), y + 3), fill=(190, 90, 95))
    return image


def room(rng: Rng) -> Image.Image:
    image = Image.new("RGB", (_S, _S), jitter(rng, (228, 208, 180)))
    draw = ImageDraw.Draw(image)
    floor = rng.uniform(0.66, 0.74) * _S
    wood = jitter(rng, (150, 98, 58))
    draw.rectangle((0, floor, _S, _S), fill=wood)
    for y in np.linspace(floor, _S, 5)[1:]:
        draw.line([(0, y), (_S, y)], fill=(115, 72, 42), width=2)
    draw.rectangle((0, floor - 9, _S, floor), fill=(250, 245, 235))
    x, w = rng.uniform(10, _S - 110), rng.uniform(75, 100)
    draw.rectangle((x, 26, x + w, 26 + w * 1.1), fill=(250, 248, 240))
    draw.rectangle((x + 7, 33, x + w - 7, 19 + w * 1.1), fill=jitter(rng, (150, 205, 240)))
    draw.line([(x + w / 2, 26), (x + w / 2, 26 + w * 1.1)], fill=(250, 248, 240), width=6)
    draw.line([(x, 26 + w * 0.55), (x + w, 26 + w * 0.55)], fill=(250, 248, 240), width=6)
    return image


SCENES: dict[str, tuple[Callable[[Rng], Image.Image], tuple[str, ...]]] = {
    "meadow": (meadow, ("in a green meadow", "on a meadow with flowers")),
    "beach": (beach, ("on a beach", "on a sandy beach by the sea")),
    "night": (night, ("in a night sky with stars", "at night under the moon")),
    "snow": (snow, ("in the snow", "in a snowy winter landscape")),
    "water": (water, ("under water", "deep under the sea")),
    "city": (city, ("in a city", "in front of city buildings")),
    "forest": (forest, ("in a forest", "among the trees of a dark forest")),
    "desert": (desert, ("in the desert", "among desert dunes")),
    "sunset": (sunset, ("at sunset", "in front of a purple and orange sunset")),
    "room": (room, ("in a room", "inside a room with a window")),
}
"""Scene name: how it is drawn, and the phrases that say it in a prompt."""


def draw_scene(name: str, rng: Rng, size: int) -> Image.Image:
    """One variation of a scene as an RGB image of size × size."""
    return SCENES[name][0](rng).resize((size, size), Image.Resampling.BOX)


def draw_plain(color: str, rng: Rng, size: int) -> Image.Image:
    """A plain background; its color is within 10 levels a channel of `COLORS[color]`."""
    return Image.new("RGB", (size, size), jitter(rng, COLORS[color]))


def draw_gradient(first: str, second: str, rng: Rng, size: int) -> Image.Image:
    """A gradient from one plain color (top) to another (bottom)."""
    return _vertical(rng, COLORS[first], COLORS[second], size)


def hue_matrix(turn: float) -> np.ndarray:
    """3 × 3 RGB matrix that rotates hues by `turn` (0 to 1 is a full circle) and keeps grays."""
    cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    third, root = (1 - cos) / 3, np.sqrt(1 / 3) * sin
    return np.array(
        [
            [cos + third, third - root, third + root],
            [third + root, cos + third, third - root],
            [third - root, third + root, cos + third],
        ],
        np.float32,
    )


def color_name(rgb: np.ndarray) -> str:
    """The name in `COLORS` nearest to an sRGB color (0 to 255), by distance in hue, lightness and saturation."""

    def key(c: np.ndarray) -> np.ndarray:
        h, light, s = colorsys.rgb_to_hls(*(np.asarray(c, float) / 255))
        chroma = s * (1 - abs(2 * light - 1))
        return np.array([chroma * np.cos(2 * np.pi * h), chroma * np.sin(2 * np.pi * h), light])

    return min(COLORS, key=lambda n: float(np.sum((key(rgb) - key(np.array(COLORS[n]))) ** 2)))
