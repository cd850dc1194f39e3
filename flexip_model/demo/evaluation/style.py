"""Whether a picture is a rendering, a shaded cartoon or a flat icon: a linear probe of textures and of shading.

Textures are MobileNetV2's earlier layers. Shading is how often neighboring pixels differ by how much, at three sizes,
and how many colors there are: a flat area and a gradient differ there, where a network that was made to name things
hardly sees it. The probe is fitted to true composed pictures of training instances, each as it is and through the VAE
(our choice: the VAE blurs what tells the two apart, and all that the model draws came through it), never to generated
ones. By textures alone, and a third as many pictures, it was right for 75, 70 and 62 % of true renderings, cartoons and
icons through version 4's VAE; so, for about 80, 80 and 75 %. Some of the rest nobody could tell: many of Noto's
cartoons have no shades at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..scenes.compose import Composer
from .judge import Judge, to_bytes
from .subjects import BACKGROUNDS, JUDGED_STYLES, compose

PER_STYLE, TESTED = 600, 100
"""True pictures of each style that the probe is fitted to, and that it is tested on."""
_CENTER = slice(14, 114)
"""What is looked at."""
_SIZES = (0, 0.004, 0.008, 0.012, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15, 0.25, 0.4)
"""Differences of pixels are sorted into these classes, each from its number to the next."""
_DECAY = 0.01
_PART = 256
_PARTS = ("mean", "std", "weight", "bias")

Probe = Mapping[str, Sequence[float] | Sequence[Sequence[float]]]


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


def shading(pictures: Tensor) -> Tensor:
    """(n, 3, h, w) uint8 → (n, 116): at full, half and quarter size the shares of places whose difference from their
    neighbors, curvature, and difference across four pixels is of each class of `_SIZES`; then of the colors, at 16
    levels a channel: entropy, how many cover 0.2 %, and the share of the 1 to 32 most frequent."""
    found = []
    for part in pictures.split(_PART):
        row = []
        for size in (1, 2, 4):
            x = F.avg_pool2d(part.float() / 255, size)
            here, inner = x[..., :-1, :-1], x[..., 1:-1, 1:-1]
            across = torch.maximum((x[..., :-1, 1:] - here).abs(), (x[..., 1:, :-1] - here).abs())
            around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
            row += [_shares(d.amax(1)) for d in (across, (4 * inner - around).abs() / 2)]
            row.append(_shares((x[..., 4:, 4:] - x[..., 4:, :-4]).abs().amax(1)))
        levels = part.long() // 16
        code = (levels[:, 0] * 256 + levels[:, 1] * 16 + levels[:, 2]).flatten(1)
        count = torch.zeros(len(part), 16**3, device=part.device).scatter_add_(1, code, torch.ones_like(code).float())
        colors = (count / code.shape[1]).sort(1, descending=True).values
        entropy = -(colors * (colors + 1e-9).log()).sum(1)
        frequent = [colors[:, : 2**k].sum(1) for k in range(6)]
        row.append(torch.stack([entropy, (colors > 0.002).sum(1) / 50, *frequent], 1))
        found.append(torch.cat(row, 1))
    return torch.cat(found)


def _shares(differences: Tensor) -> Tensor:
    """(n, h, w) → the share of places in each class, (n, classes)."""
    reached = torch.stack([(differences >= size).float().mean((1, 2)) for size in _SIZES], 1)
    return reached - F.pad(reached[:, 1:], (0, 1))


class StyleJudge:
    """Probabilities of the judged styles.

    Args:
        composer: of the drawings whose true pictures it is fitted to.
        through_vae: pictures to pictures.
        probe: one that is fitted already, as `probe` gives it.
    """

    def __init__(
        self,
        judge: Judge,
        composer: Composer,
        through_vae: Callable[[Tensor], Tensor],
        probe: Probe | None = None,
        seed: int = 3,
    ) -> None:
        self.judge = judge
        if probe is None:
            fitted = self._fit(*examples(composer, PER_STYLE, seed), through_vae)
        else:
            fitted = tuple(torch.tensor(probe[name], device=judge.device) for name in _PARTS)
        self.mean, self.std, self.weight, self.bias = fitted

    @property
    def probe(self) -> dict[str, list[float] | list[list[float]]]:
        """What was fitted, six digits of each number."""
        tensors = {"mean": self.mean, "std": self.std, "weight": self.weight, "bias": self.bias}
        return {
            name: np.vectorize(lambda v: float(f"{v:.6g}"))(t.cpu().numpy()).tolist() for name, t in tensors.items()
        }

    def _fit(self, pictures: Tensor, truth: Tensor, through_vae: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        features = torch.cat([self._features(pictures), self._features(through_vae(pictures))])
        truth = truth.repeat(2).to(features.device)
        mean, std = features.mean(0), features.std(0) + 1e-4
        features = (features - mean) / std
        weight = torch.zeros(len(JUDGED_STYLES), features.shape[1], device=features.device, requires_grad=True)
        bias = torch.zeros(len(JUDGED_STYLES), device=features.device, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=200)

        def loss() -> Tensor:
            solver.zero_grad()
            value = F.cross_entropy(features @ weight.t() + bias, truth) + _DECAY * weight.pow(2).sum()
            value.backward()
            return value

        with torch.enable_grad():
            solver.step(loss)
        return mean, std, weight.detach(), bias.detach()

    @torch.no_grad()
    def _features(self, pictures: Tensor) -> Tensor:
        middle = pictures[:, :, _CENTER, _CENTER].to(self.judge.device)
        return torch.cat([self.judge.textures(middle), shading(middle)], 1)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, 128, 128) uint8 to probabilities of the styles, (n, 3), on the judge's device."""
        return ((self._features(pictures) - self.mean) / self.std @ self.weight.t() + self.bias).softmax(-1)

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
