"""What happens outside the small model's domain: photographs, and drawings by an artist whom no part of it ever saw."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ...images.contact_sheet import draw_sheet
from ...images.pictures import on_white
from ..scenes.sources import Package, fetch, read_json
from ..scenes.store import svg_picture
from ..stages.vae import to_pictures
from .judge import to_bytes
from .shipped import Shipped, noises
from .wheels import Wheel

SCIKIT_IMAGE = Wheel(
    "scikit-image==0.25.2",
    "scikit_image-0.25.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641",
)
"""Two of its pictures are read: Chelsea the cat (Stefan van der Walt) and the coffee cup (Rachel Michetti), CC0."""
FXEMOJI = Package(
    "@iconify-json/fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef", "Apache-2.0"
)
"""Mozilla's emoji of Firefox OS."""
PHOTOS = (
    ("chelsea.png", (60, 0, 360, 300), "a 3d render of a cat in a green meadow"),
    ("coffee.png", (140, 30, 510, 400), "a 3d render of a coffee on a beach"),
)
"""File, the square that is cut out of it, and the prompt."""
DRAWINGS = (("turtle", "a 3d render of a turtle on a beach"), ("dogside", "a cartoon of a dog in the snow"))
"""The name of a drawing, and the prompt."""
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SIDE, _MARGIN = 128, 13


def draw_outside(model: Shipped, downloads: Path, path: Path) -> None:
    """One row per reference: it, and the sweep that it gives."""
    shown, prompts = [], []
    for name, box, prompt in PHOTOS:
        with Image.open(SCIKIT_IMAGE.extract(f"skimage/data/{name}", downloads)) as photo:
            shown.append(photo.convert("RGB").crop(box).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
        prompts.append(prompt)
    icons = read_json(fetch(FXEMOJI, downloads), "icons.json")
    inside = _SIDE - 2 * _MARGIN
    for name, prompt in DRAWINGS:
        drawing = svg_picture(icons["icons"][name]["body"], icons["height"])
        drawing = drawing.resize((inside, inside), Image.Resampling.LANCZOS)
        shown.append(on_white(drawing, (_SIDE, _SIDE), (_MARGIN, _MARGIN)))
        prompts.append(prompt)
    count = len(GAMMAS)
    drawn = model.draw(
        [prompt for prompt in prompts for _ in GAMMAS],
        noises(1, seed=2).expand(len(prompts) * count, -1, -1, -1),
        model.references(to_bytes(shown)),
        [row for row in range(len(prompts)) for _ in GAMMAS],
        GAMMAS * len(prompts),
    )
    pictures = to_pictures(drawn.cpu().float() / 127.5 - 1)
    rows = [pictures[start : start + count] for start in range(0, len(pictures), count)]
    draw_sheet(rows, GAMMAS, shown).save(path, quality=90)
