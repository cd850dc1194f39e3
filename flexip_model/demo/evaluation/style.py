"""Whether a picture is a rendering, a shaded cartoon or a flat icon: a linear probe of MobileNetV2's earlier layers.

It is fitted to true composed pictures of training instances, each as it is and through the VAE (our choice: the VAE
blurs what tells a flat area from a shaded one, and everything that the model draws came through it), never to generated
ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..scenes.compose import Composer
from .judge import Judge, to_bytes
from .subjects import BACKGROUNDS, JUDGED_STYLES, compose

PER_STYLE, TESTED = 200, 100
"""True pictures of each style that the probe is fitted to, and that it is tested on."""
_CENTER = slice(14, 114)
"""What is looked at."""


def examples(composer: Composer, per_style: int, seed: int) -> tuple[Tensor, Tensor]:
    """True pictures of every judged style, (n, 3, 128, 128) uint8, and its number in `JUDGED_STYLES`."""
    rng = np.random.default_rng(seed)
    pictures, truth = [], []
    for number, style in enumerate(JUDGED_STYLES):
        looks = [look for look in composer.store.looks if look.style == style and not look.frame]
        for place in range(per_style if looks else 0):
            if place % len(looks) == 0:
                order = rng.permutation(len(looks))
            background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
            pictures.append(compose(composer, looks[order[place % len(looks)]], background, int(rng.integers(1 << 30))))
            truth.append(number)
    return to_bytes(pictures), torch.tensor(truth)


class StyleJudge:
    """Probabilities of the judged styles.

    Args:
        composer: of the drawings whose true pictures it is fitted to.
        through_vae: pictures to pictures.
    """

    def __init__(
        self,
        judge: Judge,
        composer: Composer,
        through_vae: Callable[[Tensor], Tensor],
        seed: int = 3,
    ) -> None:
        self.judge = judge
        pictures, truth = examples(composer, PER_STYLE, seed)
        features = torch.cat([self._features(pictures), self._features(through_vae(pictures))])
        truth = truth.repeat(2).to(features.device)
        self.mean, self.std = features.mean(0), features.std(0) + 1e-4
        self.weight = torch.zeros(len(JUDGED_STYLES), features.shape[1], device=features.device, requires_grad=True)
        self.bias = torch.zeros(len(JUDGED_STYLES), device=features.device, requires_grad=True)
        solver = torch.optim.LBFGS([self.weight, self.bias], max_iter=200)

        def loss() -> Tensor:
            solver.zero_grad()
            value = F.cross_entropy(self._logits(features), truth) + 0.1 * self.weight.pow(2).sum()
            value.backward()
            return value

        with torch.enable_grad():
            solver.step(loss)

    def _features(self, pictures: Tensor) -> Tensor:
        return self.judge.textures(pictures[:, :, _CENTER, _CENTER])

    def _logits(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std @ self.weight.t() + self.bias

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, 128, 128) uint8 to probabilities of the styles, (n, 3), on the judge's device."""
        return self._logits(self._features(pictures)).softmax(-1)

    def accuracy(
        self,
        composer: Composer,
        change: Callable[[Tensor], Tensor] = lambda pictures: pictures,
        seed: int = 4,
    ) -> dict[str, float]:
        """Share right of each style, on true pictures of other drawings, changed by `change`."""
        pictures, truth = examples(composer, TESTED, seed)
        right = (self(change(pictures)).argmax(-1).cpu() == truth).float()
        return {
            style: round(float(right[truth == n].mean()), 4)
            for n, style in enumerate(JUDGED_STYLES)
            if bool((truth == n).any())
        }
