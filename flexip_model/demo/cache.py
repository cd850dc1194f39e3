"""Composed pictures as latents: drawn and encoded once, read by the base model's and the adapter's training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compose import Composer, Recipe
from .vae import to_pixels

_PART = 512


class LatentCache:
    """Recipes and their latents.

    Attributes:
        recipes: what was composed.
        latents: float16, (n, 4, 16, 16), already multiplied by the scaling factor (unit deviation).
    """

    def __init__(self, recipes: list[Recipe], latents: np.ndarray) -> None:
        self.recipes, self.latents = recipes, latents

    @classmethod
    def open(cls, folder: Path) -> LatentCache:
        """All finished parts of a cache, in order."""
        recipes, latents = [], []
        for path in sorted(folder.glob("part-*.npy")):
            recipes += [Recipe(**r) for r in json.loads(path.with_suffix(".json").read_text())]
            latents.append(np.load(path))
        return cls(recipes, np.concatenate(latents))

    def __len__(self) -> int:
        return len(self.recipes)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[Recipe], Tensor]:
        """``count`` random entries: recipes and float32 latents."""
        picked = rng.integers(len(self.recipes), size=count)
        return [self.recipes[i] for i in picked], torch.from_numpy(self.latents[picked]).float()


@torch.no_grad()
def fill(composer: Composer, vae: Any, folder: Path, count: int, seed: int = 5, batch: int = 16) -> LatentCache:
    """Compose and encode ``count`` pictures into ``folder``, in parts; finished parts are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(-(-count // _PART)):
        path = folder / f"part-{part:04d}.npy"
        if path.exists():
            continue
        rng = np.random.default_rng((seed, part))
        recipes = [composer.recipe(rng) for _ in range(_PART)]
        latents = []
        for start in range(0, _PART, batch):
            pixels = to_pixels([composer.picture(r) for r in recipes[start : start + batch]])
            with torch.autocast("cpu", torch.bfloat16):
                code = vae.encode(pixels).latent_dist.mean
            latents.append((code.float() * vae.config.scaling_factor).half().numpy())
        path.with_suffix(".json").write_text(json.dumps([r.to_json() for r in recipes]))
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, np.concatenate(latents))
        temporary.replace(path)
        print(f"cache {part + 1} / {-(-count // _PART)}", flush=True)
    return LatentCache.open(folder)
