"""Where a likeness is lost on its way from the reference to the picture: what linear readers make of each part of it.

Each reader is fitted by ridge regression on scenes with trained drawings, and read on scenes with held-out ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...common.errors import FlexIPError
from ..scenes.compose import Composer
from ..scenes.store import Store
from ..stages.networks import GRID, noise_schedule
from ..stages.queries import Watched
from ..stages.vae import to_pixels
from .judge import to_bytes
from .shipped import Shipped

FITTED, READ = 192, 64
"""Scenes with trained drawings, and with held-out ones."""
STEP = 700
"""Of the noise in which queries are looked at: where things are is decided there."""
INSIDE = 0.98
"""Share of a cell from which it is the subject's."""
RIDGE = 0.1


class Scenes:
    """Targets, and references that show the same picture of the subject in its place.

    Attributes:
        references: (n, 3, 128, 128) uint8.
        latents: (n, 256, 4), of unit deviation.
        inside: (n, 256) bool, the cells that are the subject's.
    """

    def __init__(self, model: Shipped, composer: Composer, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        recipes = [composer.recipe(rng, recolor=0) for _ in range(count)]
        drawn = [composer.picture_and_mask(recipe) for recipe in recipes]
        self.references = to_bytes([composer.picture(composer.same(recipe, rng)) for recipe in recipes])
        self.prompts = [composer.prompt(recipe, rng) for recipe in recipes]
        pixels = to_pixels([picture for picture, _ in drawn])
        with torch.no_grad():
            code = model.vae.encode(pixels.to(model.device)).latent_dist.mean * model.vae.config.scaling_factor
        self.code = code.cpu()
        self.latents = self.code.flatten(2).transpose(1, 2)
        shares = torch.stack([torch.from_numpy(np.asarray(mask, np.float32)) for _, mask in drawn])[:, None] / 255
        self.inside = nn.functional.adaptive_avg_pool2d(shares, GRID).flatten(1) > INSIDE


def probe(folder: Path, store: Path) -> dict[str, dict[str, float]]:
    """Shares of variance that linear readers leave, 0 where all is read and 1 where nothing is.

    Args:
        folder: what `export` wrote.
        store: the folder of all drawings.

    Returns:
        "the subject's latents, of": by what is read (the encoder's patches, P's queries);
        "rows, of the base's queries" and "columns, …": by cross-attention layer, at noise step `STEP`.

    Raises:
        FlexIPError: the exported adapter has no query for every place.
    """
    model = Shipped(folder)
    if model.adapter.config.queries != GRID**2:
        raise FlexIPError(f"the adapter has {model.adapter.config.queries} queries; expected one for each of {GRID**2}")
    drawings = Store.open(store)
    fitted = Scenes(model, Composer(drawings.split(heldout=False)), FITTED, seed=1)
    read = Scenes(model, Composer(drawings.split(heldout=True)), READ, seed=2)
    found: dict[str, dict[str, float]] = {"the subject's latents, of": {}}
    seen = [model.features(scenes.references) for scenes in (fitted, read)]
    with torch.no_grad():
        tokens = [model.adapter.preservation(features)[:, : GRID**2].cpu() for features in seen]
    for name, pair in (("the encoder's patches", [features.patches.cpu() for features in seen]), ("P", tokens)):
        found["the subject's latents, of"][name] = left(
            (pair[0][fitted.inside], fitted.latents[fitted.inside]), (pair[1][read.inside], read.latents[read.inside])
        )
    queries = [queries_of(model, scenes) for scenes in (fitted, read)]
    for number, name in enumerate(("rows", "columns")):
        found[f"{name}, of the base's queries"] = {
            layer: left(*((of[layer].flatten(0, 1), _places(of[layer], number)) for of in queries))
            for layer in queries[0]
        }
    return found


def left(fitted: tuple[Tensor, Tensor], read: tuple[Tensor, Tensor]) -> float:
    """The share of the variance of `read`'s values (n, d) that a ridge regression on `fitted` leaves.

    Args:
        fitted, read: what is read (n, w), and the values.
    """
    (x, y), (x_read, y_read) = ((_with_one(a.double()), b.double()) for a, b in (fitted, read))
    weights = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return round(float((x_read @ weights - y_read).square().sum() / (y_read - y_read.mean(0)).square().sum()), 3)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def _places(queries: Tensor, number: int) -> Tensor:
    """The cosine of every query's row or column, (n · N, 1), for queries (n, N, w) of a square grid."""
    count, side = len(queries), round(queries.shape[1] ** 0.5)
    wave = torch.cos(torch.pi * (torch.arange(side) + 0.5) / side)
    grid = wave[:, None].expand(side, side) if number == 0 else wave.expand(side, side)
    return grid.flatten().repeat(count)[:, None]


@torch.no_grad()
def queries_of(model: Shipped, scenes: Scenes) -> dict[str, Tensor]:
    """By cross-attention layer with at least half as many places in a row as the latents have, its queries (n, N, w)
    where the base draws noisy targets by their prompts."""
    steps = torch.full((len(scenes.prompts),), STEP)
    noise = torch.randn(scenes.code.shape, generator=torch.Generator().manual_seed(3))
    noisy = noise_schedule().add_noise(scenes.code, noise, steps).to(model.device)
    text = model.base.read(model.words(scenes.prompts).to(model.device))
    found = Watched(model.base.unet)
    model.base.unet(noisy, steps.to(model.device), text)
    found.stop()
    return {name: value.float().cpu() for name, value in found.items() if value.shape[1] >= (GRID // 2) ** 2}


def report(found: dict[str, dict[str, float]]) -> str:
    """The shares in lines."""
    lines = ["share of the variance that a linear reader leaves"]
    for what, shares in found.items():
        lines += [what, *(f"  {100 * share:4.0f} %  {name}" for name, share in shares.items())]
    return "\n".join(lines)
