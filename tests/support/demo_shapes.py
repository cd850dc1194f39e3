"""Five drawn subjects in three styles, in place of the packages' pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from flexip_model.demo.scenes.concepts import Subject
from flexip_model.demo.scenes.store import SIDE, Look, Store


def shapes() -> Store:
    """Five regular polygons, each in its own color."""
    pixels, looks = [], []
    for i, color in enumerate(["red", "green", "blue", "orange", "purple"]):
        subject = Subject(f"f{i}", f"{color} thing", f"thing{i}")
        for style, fill in (("3d", color), ("flat", color), ("line", "black")):
            image = Image.new("RGBA", (SIDE, SIDE))
            ImageDraw.Draw(image).regular_polygon((SIDE / 2, SIDE / 2, SIDE * 0.45), 3 + i, fill=fill)
            looks.append(Look(len(looks), subject, style, False))
            pixels.append(np.asarray(image))
    return Store(np.stack(pixels), looks)
