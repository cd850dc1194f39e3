"""Recipes painted on the device that trains: the composer's pictures by the thousand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .backgrounds import SCENES, draw_scene, hue_matrix
from .compose import SIDE, Composer
from .drawn import COLUMNS
from .store import Store

_FINER = 2
"""Sprites are sampled this much finer a side and averaged, so that edges stay smooth where a look is made smaller."""
_DARK = 95
_LINE_LIGHT, _LINE_DARK = 245.0, 15.0


class Painter:
    """Looks and scenes on a device, and how they become pictures.

    The pictures are those of `Composer.picture_and_mask` but for the filter that resizes and turns a look.
    """

    def __init__(self, store: Store, device: torch.device, scene_variants: int, size: int = SIDE) -> None:
        self.size, self.device = size, device
        self.looks = torch.from_numpy(np.array(store.pixels)).to(device).permute(0, 3, 1, 2).contiguous()
        scenes = [draw_scene(name, np.random.default_rng(i), size) for name in SCENES for i in range(scene_variants)]
        self.scenes = torch.from_numpy(np.stack([np.asarray(s) for s in scenes])).to(device).permute(0, 3, 1, 2)
        self.turns = torch.from_numpy(np.stack([hue_matrix(k / 360) for k in range(360)])).to(device)

    @classmethod
    def like(cls, composer: Composer, device: torch.device) -> Painter:
        """A painter of a composer's recipes."""
        return cls(composer.store, device, composer.scene_variants, composer.size)

    @torch.no_grad()
    def __call__(self, recipes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of `COLUMNS`, float32 (n, 17) on the device, to pictures (n, 3, s, s) in [-1, 1] and the looks' alpha
        (n, 1, s, s) in [0, 1]."""
        of = dict(zip(COLUMNS, recipes.t(), strict=True))
        ground = self._grounds(of)
        sprites = self.looks[of["row"].long()].float()
        color, alpha = self._colors(of, sprites[:, :3], ground), sprites[:, 3:] / 255
        placed = F.grid_sample(torch.cat([color * alpha, alpha], 1), self._grid(of), align_corners=False)
        placed = F.avg_pool2d(placed, _FINER)
        alpha = placed[:, 3:]
        return (ground * (1 - alpha) + placed[:, :3]) / 127.5 - 1, alpha

    def _grounds(self, of: dict[str, Tensor]) -> Tensor:
        ramp = torch.linspace(0, 1, self.size, device=self.device)[:, None]
        top = torch.stack([of["top_red"], of["top_green"], of["top_blue"]], 1)[..., None, None]
        bottom = torch.stack([of["red"], of["green"], of["blue"]], 1)[..., None, None]
        plain = (top + (bottom - top) * ramp).expand(-1, -1, -1, self.size)
        drawn = of["scene"] >= 0
        scenes = self.scenes[of["scene"].long().clamp(min=0)].float()
        scenes = torch.where((of["mirrored"] > 0)[:, None, None, None], scenes.flip(-1), scenes)
        return torch.where(drawn[:, None, None, None], scenes, plain)

    def _colors(self, of: dict[str, Tensor], color: Tensor, ground: Tensor) -> Tensor:
        """The looks' own colors (n, 3, …), turned, or the one color of a line drawing."""
        matrix = self.turns[(of["hue"] * 360).round().long() % 360]
        turned = torch.einsum("nij,njhw->nihw", matrix, color).clamp(0, 255)
        one = torch.where(ground.mean((1, 2, 3)) < _DARK, _LINE_LIGHT, _LINE_DARK)[:, None, None, None]
        return torch.where((of["line"] > 0)[:, None, None, None], one, turned)

    def _grid(self, of: dict[str, Tensor]) -> Tensor:
        """Where in a look, from -1 to 1, each place of the picture lies: (n, 2s, 2s, 2)."""
        middles = (torch.arange(self.size * _FINER, device=self.device) + 0.5) / _FINER
        x, y = middles[None, None] - of["x"][:, None, None], middles[None, :, None] - of["y"][:, None, None]
        angle = torch.deg2rad(of["angle"])[:, None, None]
        across, down = angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y
        across = across * torch.where(of["flip"] > 0, -2.0, 2.0)[:, None, None] / of["wide"][:, None, None]
        return torch.stack([across, down * 2 / of["high"][:, None, None]], -1)
