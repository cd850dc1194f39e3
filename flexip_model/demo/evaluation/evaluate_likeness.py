"""What limits the likeness: the share of a latent's variance that probes of the reference leave unexplained.

A cell is *inside* where all its neighbors show nothing but the subject, and *outline* where the subject covers it in
part. References stand on white, targets on backgrounds of their own, so an outline's latents cannot be read off the
reference alone: what they differ by is reported beside the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...evaluation.statistics import interval
from ...hosts.diffusers import Condition, inject
from ...method.adapters import ReferenceFeatures
from ...method.gate import gamma_tensor
from ..scenes.compose import Composer
from ..stages.networks import GRID, noise_schedule
from ..stages.vae import to_pixels
from .shipped import Shipped

FITTED, MEASURED = 256, 128
"""Pictures of trained subjects on which the linear probes are fitted, and of either kind on which all is measured."""

Shares = dict[str, dict[str, dict[str, float]]]


@dataclass
class Drawn:
    """n targets and their references, which show the same subject in the same place on white.

    Attributes:
        target, on_white: latents of unit deviation, (n, 4, 16, 16).
        mask: the subject's share of each cell, (n, 16, 16).
        pixels: of the references, in -1 to 1, (n, 3, 128, 128).
    """

    target: Tensor
    on_white: Tensor
    mask: Tensor
    pixels: Tensor
    features: ReferenceFeatures
    prompts: list[str]


@torch.no_grad()
def likeness_figures(
    model: Shipped, seen: Composer, unseen: Composer, *, fitted: int = FITTED, measured: int = MEASURED
) -> dict[str, Any]:
    """Per kind of cell, shares of a picture's variance of latents (0: all is known; a value can exceed 1): median and
    95th percentile of the pictures, with intervals.

    background: how far target and reference differ. pixels, dino, preservation: what a linear probe of the reference's
    pixels (three cells square), of the DINO-like tokens and of P leaves of the reference's latents, on held-out
    subjects. first_step_seen, first_step_heldout: what the first step of sampling at γ = 1 (t = 999, no guidance)
    leaves of the target's.
    """
    known, trained = draw(model, seen, 61, fitted), draw(model, seen, 62, measured)
    heldout = draw(model, unseen, 63, measured)
    found = {"background": _shares(heldout.target - heldout.on_white, heldout.target, heldout.mask)}
    probes: dict[str, Callable[[Drawn], Tensor]] = {
        "pixels": _patches,
        "dino": lambda d: d.features.patches,
        "preservation": lambda d: model.adapter.preservation(d.features)[:, : GRID**2],
    }
    for name, tokens in probes.items():
        found[name] = _read(tokens(known), known, tokens(heldout), heldout)
    for name, drawn in (("first_step_seen", trained), ("first_step_heldout", heldout)):
        found[name] = _shares(first_step(model, drawn) - drawn.target, drawn.target, drawn.mask)
    return {"fitted": fitted, "measured": measured, "unexplained": found}


def draw(model: Shipped, composer: Composer, seed: int, count: int, *, batch: int = 16) -> Drawn:
    """`count` pictures as in training, each with its reference on white."""
    rng = np.random.default_rng(seed)
    recipes = [composer.recipe(rng) for _ in range(count)]
    drawn = [composer.picture_and_mask(r) for r in recipes]
    pixels = to_pixels([composer.picture(replace(r, background="plain:white")) for r in recipes])

    def latents(of: Tensor) -> Tensor:
        codes = [model.vae.encode(part).latent_dist.mean for part in of.split(batch)]
        return torch.cat(codes) * model.vae.config.scaling_factor

    cls, patches = zip(*(model.features(part) for part in pixels.split(batch)), strict=True)
    shares = np.stack([np.asarray(mask.reduce(composer.size // GRID)) for _, mask in drawn])
    return Drawn(
        latents(to_pixels([p for p, _ in drawn])),
        latents(pixels),
        torch.from_numpy(shares).float() / 255,
        pixels,
        ReferenceFeatures(torch.cat(cls), torch.cat(patches)),
        [composer.prompt(r, rng) for r in recipes],
    )


def first_step(model: Shipped, drawn: Drawn) -> Tensor:
    """The clean latents that the model expects at γ = 1, having seen nothing but noise."""
    schedule, count = noise_schedule(), len(drawn.target)
    generator = torch.Generator().manual_seed(0)
    noise, last = torch.randn(drawn.target.shape, generator=generator), torch.tensor([999])
    noisy = schedule.add_noise(drawn.target, noise, last)
    text = model.base.read(model.words(drawn.prompts))
    host = inject(model.base.unet, model.adapter)
    host.condition = Condition(
        model.adapter.preservation(drawn.features),
        model.adapter.personalization(text, drawn.features.cls),
        gamma_tensor([1.0] * count),
    )
    v = model.base.unet(noisy, last.expand(count), text).sample
    host.eject()
    kept = schedule.alphas_cumprod[999]
    return kept.sqrt() * noisy - (1 - kept).sqrt() * v


def _kinds(mask: Tensor) -> dict[str, Tensor]:
    inside = -F.max_pool2d(-mask[:, None], 3, 1, 1)[:, 0] > 0.98
    return {"inside": inside.float(), "outline": ((mask > 0.02) & (mask < 0.98)).float()}


def _shares(error: Tensor, latents: Tensor, mask: Tensor) -> Shares:
    """For every picture the share of its latents' variance that is left, per kind of cell."""
    found = {}
    for name, cells in _kinds(mask).items():
        left, all_of_it = ((x.square().mean(1) * cells).sum((1, 2)) for x in (error, latents))
        shares = (left / all_of_it)[cells.sum((1, 2)) > 0].tolist()
        found[name] = {"median": interval(shares, np.median), "p95": interval(shares, partial(np.percentile, q=95))}
    return found


def _patches(drawn: Drawn) -> Tensor:
    """The reference's pixels around every cell, (n, 256, 1728)."""
    side = drawn.pixels.shape[-1] // GRID
    return F.unfold(drawn.pixels, 3 * side, padding=side, stride=side).transpose(1, 2)


def _read(tokens: Tensor, fitted: Drawn, tested: Tensor, heldout: Drawn) -> Shares:
    """Least squares with a constant, from `tokens` (n, 256, d) to the reference's latents, fitted on cells that hold
    any of the subject."""

    def flat(x: Tensor) -> Tensor:
        return F.pad(x, (0, 1), value=1.0)

    here = (fitted.mask > 0.02).flatten(1)
    wanted = fitted.on_white.flatten(2).transpose(1, 2)[here]
    probe = torch.linalg.lstsq(flat(tokens[here]).double(), wanted.double()).solution.float()
    told = (flat(tested) @ probe).transpose(1, 2).unflatten(2, (GRID, GRID))
    return _shares(told - heldout.on_white, heldout.on_white, heldout.mask)
