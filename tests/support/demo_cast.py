"""A small store with held-out subjects: drawn shapes as every artist's pictures of six words."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from flexip_model.demo.scenes.concepts import Subject, concept_of
from flexip_model.demo.scenes.store import SIDE, Look, Store
from flexip_model.demo.scenes.vocabulary import WORDS

HELD = ("tomato", "eggplant", "grapes")
"""Words of held-out drawings of Fluent's."""
KNOWN = ("dog", "fox", "cactus")
_COLORS = ("red", "purple", "green", "orange", "brown", "teal")


def cast_store() -> Store:
    """Six words, a shape and a color each; every artist's picture of it differs by an inner disc."""
    pixels, looks = [], []
    for i, (word, color) in enumerate(zip((*HELD, *KNOWN), _COLORS, strict=True)):
        subject = Subject(WORDS[word], word, concept_of(word))
        drawn = {"3d": subject, "cartoon": subject.by("noto"), "flat": subject.by("twemoji")}
        for number, (style, who) in enumerate([*drawn.items(), ("flat", subject), ("line", subject)]):
            image = Image.new("RGBA", (SIDE, SIDE))
            draw = ImageDraw.Draw(image)
            draw.regular_polygon((SIDE / 2, SIDE / 2, SIDE * 0.45), 3 + i, fill="black" if style == "line" else color)
            draw.ellipse((60 - 8 * number, 60, 84, 84 + 6 * number), fill="white" if number % 2 else "gray")
            looks.append(Look(len(looks), who, style, False))
            pixels.append(np.asarray(image))
    return Store(np.stack(pixels), looks)


def write_store(store: Store, folder) -> None:
    """As `store.build` writes one."""
    import json
    from dataclasses import asdict

    folder.mkdir(parents=True)
    np.save(folder / "looks.npy", store.pixels)
    (folder / "looks.json").write_text(json.dumps([asdict(look) for look in store.looks]), encoding="utf-8")
