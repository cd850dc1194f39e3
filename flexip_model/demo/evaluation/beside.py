"""What adapters draw beside one base: a few held-out subjects, a row for each adapter, the knob along it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

from PIL import Image

from ...images.contact_sheet import draw_cells
from ..scenes.compose import Composer
from ..scenes.store import Store
from ..stages.vae import to_pictures
from .evaluate import FINE_PROMPT
from .judge import to_bytes
from .shipped import Shipped, noises
from .subjects import Cast, compose

SHOWN = {
    "shipped": "FlexIP\nas it ships",
    "flexip-seed1": "FlexIP\ntrained as long\nas the others",
    "ip-adapter-plus-seed1": "IP-Adapter-\nPlus",
    "ip-adapter-seed1": "IP-Adapter",
}
"""Adapters by name, in the order of the rows, and what stands beside their rows."""
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SUBJECTS = 3
"""At even distances among the held-out ones. The first is asked for by its own word, the others by another."""
_SIDE, _LETTERS = 112, 14


def draw_beside(model: Shipped, store: Store, adapters: Mapping[str, Path], path: Path) -> None:
    """Draw subjects with each adapter; left of a subject's rows are its reference and the prompt.

    Args:
        store: all drawings.
        adapters: name to file; those that `SHOWN` names are drawn.
    """
    cast, composer = Cast(store), Composer(store)
    loaded = {name: model.load(adapters[name])[1] for name in SHOWN if name in adapters}
    cells: list[tuple[str, Image.Image | str]] = []
    for place in range(SUBJECTS):
        number = place * len(cast.subjects) // SUBJECTS
        prompt = cast.wanted(number, 1)[-1 if place else FINE_PROMPT].prompt
        reference = compose(composer, cast.subjects[number].reference, "plain:white", seed=0)
        left: list[tuple[str, Image.Image | str]] = [("reference", reference), ("prompt", fill(prompt, _LETTERS))]
        left += [("", "")] * (len(loaded) - len(left))
        noise = noises(1, seed=1000 + number).expand(len(GAMMAS), -1, -1, -1)
        for first, (name, adapter) in zip(left, loaded.items(), strict=False):
            of = model.references(to_bytes([reference]), adapter)
            drawn = model.draw([prompt] * len(GAMMAS), noise, of, [0] * len(GAMMAS), GAMMAS)
            knob = "gamma" if adapter.has_personalization else "scale"
            pictures = to_pictures(drawn.cpu().float() / 127.5 - 1)
            cells += [first, ("", SHOWN[name])]
            cells += [(f"{knob} {value:g}", picture) for value, picture in zip(GAMMAS, pictures, strict=True)]
    draw_cells(cells, 2 + len(GAMMAS), _SIDE).save(path, quality=90)
