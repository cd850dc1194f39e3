"""Whether a picture shows what its prompt asks for: its background, and which of many subjects.

Backgrounds are judged by color alone, against the truth of the composition. Subjects are judged by MobileNetV2's
features (`evaluation.judge`), or by raw pixels. How the picture is drawn: see `evaluation.style`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..scenes.backgrounds import SCENES, color_name, draw_scene
from ..scenes.compose import Composer
from ..scenes.store import Look
from .judge import Judge, raw_pixels, to_bytes
from .subjects import Word, true_pictures

SIDE = 128
_CELLS = 8
_named = cache(lambda color: color_name(np.array(color)))


def border(pictures: Tensor, width: int = 10) -> np.ndarray:
    """Median color of each picture's frame: (n, 3, h, w) uint8 → (n, 3), 0 to 255."""
    inside = torch.zeros(pictures.shape[2:], dtype=torch.bool, device=pictures.device)
    inside[width:-width, width:-width] = True
    frame = pictures[:, :, ~inside].sort(-1).values.float()
    middle = frame.shape[-1] // 2
    return frame[..., middle - 1 : middle + 1].mean(-1).cpu().numpy()  # the frame has an even number of pixels


class BackgroundJudge:
    """Names a background: a plain one by its frame's median color, a scene by the nearest of the scenes' mean
    drawings around the edge."""

    def __init__(self) -> None:
        self.means = torch.stack(
            [
                self._look(to_bytes([draw_scene(name, np.random.default_rng(i), SIDE) for i in range(64)])).mean(0)
                for name in SCENES
            ]
        )

    @staticmethod
    def _look(pictures: Tensor) -> Tensor:
        """The 28 cells around the edge of 8 × 8, (n, 84)."""
        cells = F.adaptive_avg_pool2d(pictures.float(), _CELLS)
        frame = torch.ones(_CELLS, _CELLS, dtype=torch.bool, device=pictures.device)
        frame[1:-1, 1:-1] = False
        return cells[:, :, frame].flatten(1)

    def scenes(self, pictures: Tensor) -> list[str]:
        """The name of each picture's nearest scene."""
        far = torch.cdist(self._look(pictures), self.means.to(pictures.device))
        return [list(SCENES)[i] for i in far.argmin(1).tolist()]

    def right(self, pictures: Tensor, backgrounds: Sequence[str]) -> np.ndarray:
        """Whether each picture has the background that was asked for, among those of its kind: (n,) bool."""
        plain = [_named(tuple(color)) for color in border(pictures).tolist()]
        found = {"plain": plain, "scene": self.scenes(pictures)}
        asked = [background.split(":") for background in backgrounds]
        return np.array([found[kind][n] == name for n, (kind, name) in enumerate(asked)])


class Gallery:
    """True pictures among which a judge looks for a picture's subject, all over the background that the prompt asks
    for, so that the background decides nothing. Each is composed and seen once.

    Args:
        composer: of the whole store, held-out drawings included.
    """

    def __init__(self, judge: Judge, composer: Composer) -> None:
        self.judge, self.composer = judge, composer
        self._seen: dict[tuple[int, str], Tensor] = {}
        self._raw: dict[tuple[int, str], Tensor] = {}

    def vectors(self, looks: Sequence[Look], background: str) -> tuple[Tensor, Tensor]:
        """The judge's vectors and the raw pixels' vectors, (n, 1280) and (n, 3072), on the judge's device."""
        missing = [look for look in looks if (look.row, background) not in self._seen]
        if missing:
            pictures = to_bytes(true_pictures(self.composer, missing, background)).to(self.judge.device)
            for look, seen, raw in zip(missing, self.judge(pictures), raw_pixels(pictures), strict=True):
                self._seen[look.row, background], self._raw[look.row, background] = seen, raw
        keys = [(look.row, background) for look in looks]
        return torch.stack([self._seen[k] for k in keys]), torch.stack([self._raw[k] for k in keys])

    def cosines(self, seen: Tensor, words: Sequence[Word], background: str, styles: Iterable[str]) -> Tensor:
        """Each picture's cosine with each word's best drawing in these styles: (n, 1280) → (n, words); a word without
        any counts by all its drawings."""
        looks, owner = [], []
        for number, word in enumerate(words):
            own = [x for style in styles for x in word.looks.get(style, ())]
            own = own or [x for drawn in word.looks.values() for x in drawn]
            looks += own
            owner += [number] * len(own)
        every = seen @ self.vectors(looks, background)[0].t()
        place = torch.tensor(owner, device=every.device).expand(len(every), -1)
        best = every.new_full((len(every), len(words)), -2.0)
        return best.scatter_reduce(1, place, every, "amax")
