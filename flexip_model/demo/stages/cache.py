"""Composed pictures as latents, with two encoded references each: made once, read by every later stage."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...common.parallel import run
from ..scenes.compose import Composer, Recipe
from .encoders import Features
from .vae import to_pixels

log = logging.getLogger(__name__)

PART = 512


@dataclass
class CachedBatch:
    """What a training step reads.

    Attributes:
        recipes: what the n targets show.
        latents: float32, (n, 4, 16, 16), already multiplied by the scaling factor (unit deviation).
        mask: float32, (n, 16, 16), the subject's share of each cell.
        cls, patches: float32, features of a reference each: (n, 128) and (n, 256, 128).
    """

    recipes: list[Recipe]
    latents: Tensor
    mask: Tensor
    cls: Tensor
    patches: Tensor

    def to(self, device: torch.device) -> CachedBatch:
        """The same on a device."""
        tensors = (self.latents, self.mask, self.cls, self.patches)
        return CachedBatch(self.recipes, *(t.to(device) for t in tensors))


class Cache:
    """Targets and, for each, the features of one reference of either kind of the gate."""

    def __init__(self, recipes: list[Recipe], tensors: dict[str, Tensor]) -> None:
        self.recipes, self.tensors = recipes, tensors

    @classmethod
    def open(cls, folder: Path) -> Cache:
        """All finished parts of a cache, in order."""
        recipes: list[Recipe] = []
        parts = []
        for path in sorted(folder.glob("part-*.safetensors")):
            recipes += [Recipe(**r) for r in json.loads(path.with_suffix(".json").read_text())]
            parts.append(load_file(path))
        return cls(recipes, {key: torch.cat([p[key] for p in parts]) for key in parts[0]})

    def __len__(self) -> int:
        return len(self.recipes)

    def draw(self, rng: np.random.Generator, variant: Tensor) -> CachedBatch:
        """Random entries, one per element of `variant` (n,): its reference is another picture of the subject where
        `variant` is true, else the same one."""
        picked = torch.from_numpy(rng.integers(len(self.recipes), size=len(variant)))

        def reference(name: str) -> Tensor:
            same, other = (self.tensors[f"{kind}_{name}"][picked].float() for kind in ("same", "other"))
            return torch.where(variant.view(-1, *[1] * (same.ndim - 1)), other, same)

        return CachedBatch(
            [self.recipes[i] for i in picked.tolist()],
            self.tensors["latents"][picked].float(),
            self.tensors["mask"][picked].float() / 255,
            reference("cls"),
            reference("patches"),
        )


@torch.no_grad()
def make_part(
    composer: Composer, vae: Any, features: Features | None, *, seed: tuple[int, int], count: int, batch: int = 16
) -> tuple[list[Recipe], dict[str, Tensor]]:
    """Compose and encode `count` targets and, with `features`, their references, in fp16 (masks in 8 bits)."""
    rng = np.random.default_rng(seed)
    recipes = [composer.recipe(rng) for _ in range(count)]
    rows: dict[str, list[Tensor]] = {}
    for start in range(0, count, batch):
        targets = recipes[start : start + batch]
        drawn = [composer.picture_and_mask(r) for r in targets]
        code = vae.encode(to_pixels([p for p, _ in drawn])).latent_dist.mean
        found = {
            "latents": (code * vae.config.scaling_factor).half(),
            "mask": torch.from_numpy(np.stack([np.asarray(m.reduce(composer.size // 16)) for _, m in drawn])),
        }
        for kind, draw in (("same", composer.same), ("other", composer.variant)) if features else ():
            assert features is not None
            cls, patches = features(to_pixels([composer.picture(draw(r, rng)) for r in targets]))
            found |= {f"{kind}_cls": cls.half(), f"{kind}_patches": patches.half()}
        for key, value in found.items():
            rows.setdefault(key, []).append(value)
    return recipes, {key: torch.cat(parts).contiguous() for key, parts in rows.items()}


def fill(
    parts_of: Callable[[], tuple[Composer, Any, Features | None]],
    folder: Path,
    *,
    count: int,
    processes: int,
    seed: int = 5,
) -> None:
    """Write parts of `PART` targets into `folder` until there are `count`; finished parts are kept.

    Args:
        parts_of: makes the composer, the VAE and the encoders (None: targets without references); called in every
            process, so it must be picklable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run(partial(_fill, parts_of, folder, -(-count // PART), seed), processes, seed)


def _fill(parts_of: Callable[[], tuple[Composer, Any, Features | None]], folder: Path, parts: int, seed: int) -> None:
    import torch.distributed as distributed

    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    composer, vae, features = parts_of()
    for part in range(rank, parts, world):
        path = folder / f"part-{part:04d}.safetensors"
        if path.exists():
            continue
        recipes, tensors = make_part(composer, vae, features, seed=(seed, part), count=PART)
        path.with_suffix(".json").write_text(json.dumps([r.to_json() for r in recipes]))
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary)
        temporary.replace(path)
        log.info(f"cache {part + 1} / {parts}")
