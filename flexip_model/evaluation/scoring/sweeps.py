"""How far the pictures along a knob are from one another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..metrics.embedding import Dino
from ..pictures.picture import Picture, PictureSet

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 3
"""Pictures that a sweep needs: below, no step is larger than another."""
SIDE = 128
"""Pictures are compared by their pixels at this size, so that steps do not hang on the method's own (our choice)."""
Key = tuple[str, str, int, str]


def find_sweeps(pictures: PictureSet) -> dict[Key, list[Picture]]:
    """Pictures that differ by the swept knob alone, in its order: by subject, prompt, seed and the other knobs."""
    knob = pictures.swept_knob()
    found: dict[Key, list[Picture]] = defaultdict(list)
    for picture in pictures.pictures if knob else ():
        if knob in dict(picture.knobs):
            rest = " ".join(f"{name}={value:g}" for name, value in picture.knobs if name != knob)
            found[picture.subject, picture.prompt, picture.seed, rest].append(picture)
    for members in found.values():
        members.sort(key=lambda picture: dict(picture.knobs)[str(knob)])
    return {key: members for key, members in sorted(found.items()) if len(members) >= LEAST}


def distances(pictures: Sequence[Image], dino: Dino | None) -> dict[str, list[list[float]]]:
    """Distances of all pairs.

    Returns:
        `pixels`: the mean absolute difference of RGB at 128 px, in [0, 1]; `dino`, where there is one: the length
        between unit embeddings, √(2 − 2 cosine), in [0, 2]. Both keep the triangle inequality (1 − cosine does not), so
        that no path is shorter than its chord.
    """
    small = [np.asarray(picture.resize((SIDE, SIDE)), np.float32) / 255 for picture in pictures]
    found = {"pixels": np.array([[np.abs(a - b).mean() for a in small] for b in small])}
    if dino is not None:
        features = dino.pictures(pictures).double().numpy()
        found["dino"] = np.linalg.norm(features[:, None] - features[None], axis=-1)
    return {name: np.round(values.astype(float), 6).tolist() for name, values in found.items()}
