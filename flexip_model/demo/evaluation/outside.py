"""What happens outside the small model's domain: photographs, and drawings by another artist."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ...images.contact_sheet import draw_sheet
from ...images.pictures import on_white
from ..scenes.sources import Package, fetch, read_json
from ..scenes.store import svg_picture
from ..stages.sampling import sample
from ..stages.vae import to_pixels
from .shipped import Shipped
from .wheels import Wheel

SCIKIT_IMAGE = Wheel(
    "scikit-image==0.25.2",
    "scikit_image-0.25.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641",
)
"""Two of its pictures are read: Chelsea the cat (Stefan van der Walt) and the coffee cup (Rachel Michetti), CC0."""
NOTO = Package(
    "@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0"
)
PHOTOS = (
    ("chelsea.png", (60, 0, 360, 300), "a 3d render of a cat in a green meadow"),
    ("coffee.png", (140, 30, 510, 400), "a 3d render of a cup on a beach"),
)
"""File, the square that is cut out of it, and the prompt."""
DRAWINGS = (("turtle", "a 3d render of a turtle on a beach"), ("house", "a flat icon of a house in the snow"))
"""Noto's name of a held-out subject, and the prompt."""
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def draw_outside(model: Shipped, downloads: Path, path: Path) -> None:
    """One row per reference: it, and the sweep that it gives."""
    references, prompts = [], []
    for name, box, prompt in PHOTOS:
        with Image.open(SCIKIT_IMAGE.extract(f"skimage/data/{name}", downloads)) as photo:
            references.append(photo.convert("RGB").crop(box).resize((128, 128), Image.Resampling.LANCZOS))
        prompts.append(prompt)
    icons = read_json(fetch(NOTO, downloads), "icons.json")
    for name, prompt in DRAWINGS:
        drawing = svg_picture(icons["icons"][name]["body"], icons.get("width", 128)).resize((128, 128))
        references.append(on_white(drawing))
        prompts.append(prompt)
    rows = []
    for reference, prompt in zip(references, prompts, strict=True):
        features = model.features(to_pixels([reference] * len(GAMMAS)))
        rows.append(
            sample(
                model.base,
                model.vae,
                model.words,
                [prompt] * len(GAMMAS),
                adapter=model.adapter,
                features=features,
                gammas=GAMMAS,
                seed=2,
                same_noise=True,
            )
        )
    draw_sheet(rows, GAMMAS, references).save(path, quality=90)
