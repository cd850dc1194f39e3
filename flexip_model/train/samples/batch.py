"""A training sample, and a batch of them as the trainer's step takes it.

Letters in shapes: B samples; H and W the target's sides in pixels, h = H / 8 and w = W / 8 its latents'; c and d the
sides that CLIP and DINO read; C and D the widths of [CLS] and of patch features, M patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...hosts.prompts import common_length
from ...method.sd15 import TEXT_LENGTH

M = TypeVar("M", bound="Movable")


@dataclass(frozen=True, eq=False)
class Movable:
    """A dataclass whose tensors (and others of its kind) go where tensors go; what else it holds stays.

    `to` and `pin_memory` are the names that accelerate's `send_to_device` and torch's `DataLoader` look for. A
    NamedTuple would need neither, but it is a sequence: `len` and iteration would be those of its fields.
    """

    def to(self: M, device: torch.device | str, non_blocking: bool = False) -> M:
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self: M) -> M:
        return self._map(lambda value: value.pin_memory())

    def _map(self: M, change: Callable[[Any], Any]) -> M:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: change(value) for name, value in values.items() if isinstance(value, (Tensor, Movable))}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Reference:
    """What the adapter reads of a reference: either feature from a cache or, where it has none, as the pixels that a
    frozen encoder makes it from.

    Attributes:
        keep: (M,) bool, the patches that may be read.
        cls: (C,) float, CLIP's [CLS] from the cache.
        clip_pixels: (3, c, c) float32 about [0, 1], as CLIP reads the picture.
        patches: (M, D) float, DINO's patch features from the cache.
        dino_pixels: (3, d, d) float32 about [0, 1], as DINO reads the picture.
    """

    keep: Tensor
    cls: Tensor | None = None
    clip_pixels: Tensor | None = None
    patches: Tensor | None = None
    dino_pixels: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One sample, on the CPU. The target comes as latents from a cache or as pixels for the VAE.

    Attributes:
        variant: whether target and reference are two pictures of a subject (§4.1).
        latents: (4, h, w) float, the target from the cache, or None.
        pixels: (3, H, W) float32 in [-1, 1], the target where no cache has it.
        reference: the picture that its features come from.
        no_image: whether the reference is dropped (App. B.1).
        input_ids: (77·k,) int64, the caption's tokens in k pieces (`hosts.prompts`), or an empty text's where it is
            dropped.
        timestep: of the noise, from 0.
        noise: (4, h, w) float32, standard normal.
        gamma_drawn: evenly from [0, 1), for `spread_gamma`.
        posterior: (4, h, w) float32, standard normal, to draw the latents from the VAE's distribution; None takes its
            mean.
        complaints: why each group that was tried before this one could not be read.
    """

    variant: bool
    latents: Tensor | None = None
    pixels: Tensor | None = None
    reference: Reference
    no_image: bool
    input_ids: Tensor
    timestep: int
    noise: Tensor
    gamma_drawn: float
    posterior: Tensor | None = None
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Feature(Movable):
    """One feature of all samples: read from a cache for some, to be made from pixels for the others.

    Attributes:
        is_cached: (B,) bool, n of them true.
        cached: (n, …) of the samples that have it, in their order; None where n is 0.
        pixels: (B - n, 3, …) float32 of the others, in their order; None where n is B.
    """

    is_cached: Tensor
    cached: Tensor | None
    pixels: Tensor | None

    def complete(self, make: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, …): what the cache has, and what `make` makes of the other samples' pixels, in the samples' order."""
        if self.pixels is None:
            assert self.cached is not None
            return self.cached
        made = make(self.pixels)
        if self.cached is None:
            return made
        whole = made.new_empty(len(self.is_cached), *made.shape[1:])
        whole[self.is_cached], whole[~self.is_cached] = self.cached.to(made), made
        return whole


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch(Movable):
    """Samples of both sides of the gate as one batch; `len` is B.

    Attributes:
        variant: (B,) bool, see `Sample`, as all of these.
        latents: (4, h, w) each, or pixels (3, H, W).
        cls: (C,) each, or pixels (3, c, c).
        patches: (M, D) each, or pixels (3, d, d).
        keep: (B, M) bool.
        no_image: (B,) bool.
        input_ids: (B, 77·K) int64; prompts of fewer pieces are repeated, K is `common_length`.
        pieces: B numbers, the pieces of each prompt before that.
        timesteps: (B,) int64.
        noise: (B, 4, h, w) float32.
        gamma_drawn: (B,) float32.
        posterior: (B, 4, h, w) float32, or None.
        unreadable: (B,) int64, groups that were tried before each and could not be read; `complaints` says why.
    """

    variant: Tensor
    latents: Feature
    cls: Feature
    patches: Feature
    keep: Tensor
    no_image: Tensor
    input_ids: Tensor
    timesteps: Tensor
    noise: Tensor
    gamma_drawn: Tensor
    unreadable: Tensor
    pieces: tuple[int, ...]
    posterior: Tensor | None = None
    complaints: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.variant)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples to a batch, in their order."""
    references = [s.reference for s in samples]
    pieces = tuple(len(s.input_ids) // TEXT_LENGTH for s in samples)
    whole = common_length(pieces)
    posteriors = [s.posterior for s in samples if s.posterior is not None]
    return Batch(
        variant=torch.tensor([s.variant for s in samples]),
        latents=_feature([s.latents for s in samples], [s.pixels for s in samples]),
        cls=_feature([r.cls for r in references], [r.clip_pixels for r in references]),
        patches=_feature([r.patches for r in references], [r.dino_pixels for r in references]),
        keep=torch.stack([r.keep for r in references]),
        no_image=torch.tensor([s.no_image for s in samples]),
        input_ids=torch.stack([s.input_ids.repeat(whole // k) for s, k in zip(samples, pieces, strict=True)]),
        pieces=pieces,
        timesteps=torch.tensor([s.timestep for s in samples]),
        noise=torch.stack([s.noise for s in samples]),
        gamma_drawn=torch.tensor([s.gamma_drawn for s in samples]),
        unreadable=torch.tensor([len(s.complaints) for s in samples]),
        posterior=torch.stack(posteriors) if posteriors else None,
        complaints=tuple(sentence for s in samples for sentence in s.complaints),
    )


def _feature(cached: Sequence[Tensor | None], pixels: Sequence[Tensor | None]) -> Feature:
    is_cached = torch.tensor([value is not None for value in cached])
    found = [value for value in cached if value is not None]
    others = [value for value in pixels if value is not None]
    return Feature(is_cached, torch.stack(found) if found else None, torch.stack(others) if others else None)
