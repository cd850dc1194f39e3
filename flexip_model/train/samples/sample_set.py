"""Samples from packed data: target, reference, caption and everything that is drawn for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ...common.errors import FlexIPError, UnreadableError
from ...hosts.prompts import prompt_ids
from ...images.buckets import Size, nearest
from ...images.crops import fit
from ...images.preprocess import MARKED, Box, Prepared, keep_patches, prepare, reference_crop
from ..configs.options import TrainConfig
from ..frozen import Frozen
from ..preview import SUBJECTS, Preview
from .batch import Reference, Sample
from .buckets import BucketSampler, make_sampler
from .checks import check_groups
from .groups import TARGET, Groups, Subject
from .sampler import SIDES, Ticket, TicketSampler

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...data.format import Frame, Group

log = logging.getLogger(__name__)
ATTEMPTS = 8
"""Groups that are tried for one sample before an unreadable place ends the run (our choice)."""
LOOKED_AT = 50
"""Validation groups that are looked at for each subject of a preview."""


class SampleSet(TorchDataset[Sample]):
    """One stage's samples; an item is asked for by its ticket.

    Attributes:
        sampler: which group a ticket takes, and its random numbers.
        sizes: of targets, by the ticket's bucket; the config's square alone where the sampler has no buckets.
    """

    def __init__(self, config: TrainConfig, groups: Groups, sampler: TicketSampler, frozen: Frozen) -> None:
        self.config, self.groups, self.sampler = config, groups, sampler
        self.tokenizer = frozen.tokenizer
        self.clip_size, self.dino_size = frozen.clip.image_size, frozen.dino.image_size
        self.dino_patch = frozen.dino.patch
        self.sizes: tuple[Size, ...] = ((config.size, config.size),)
        if isinstance(sampler, BucketSampler):
            self.sizes = sampler.sizes
        self._factor = 2 ** (len(frozen.vae.config.block_out_channels) - 1)
        self.num_train_timesteps = int(frozen.scheduler.config.num_train_timesteps)

    def __getitem__(self, ticket: Ticket) -> Sample:
        """A sample; where a group cannot be read, another one of its side takes its place and is counted.

        Raises:
            FlexIPError: `ATTEMPTS` groups in a row could not be read, or the config asks for what a group cannot give.
        """
        rng = self.sampler.rng(ticket)
        number = self.sampler.group(ticket)
        complaints: list[str] = []
        for _ in range(ATTEMPTS):
            subject = self.groups.get(ticket.side, number)
            name = f"{subject.group.dataset}, group {subject.group.group_id!r}"
            try:
                sample = self._make(subject, ticket, rng)
                return replace(sample, complaints=tuple(complaints))
            except (OSError, ValueError, SyntaxError) as error:
                if isinstance(error, FlexIPError) and not isinstance(error, UnreadableError):
                    raise FlexIPError(f"{name} cannot be a sample of this config: {error}") from error
                complaints.append(f"{name}: {error}")
                # Of all, also in buckets: one that has few groups would end the run with them.
                number = int(rng.integers(self.sampler.counts[ticket.side]))
        raise FlexIPError(
            f"{ATTEMPTS} {SIDES[ticket.side]} groups in a row could not be read, the last: {complaints[-1]}"
        )

    def _make(self, subject: Subject, ticket: Ticket, rng: np.random.Generator) -> Sample:
        # Another order of what is read and drawn would give other samples: a picture that cannot be read ends it early.
        c, variant, size = self.config, ticket.side == 1, self.sizes[ticket.bucket]
        target, reference = choose(subject.group, variant, rng, self._fitting(ticket.bucket))
        shape = (4, size[1] // self._factor, size[0] // self._factor)
        latents = subject.caches["latents"].get(target) if "latents" in subject.caches else None
        if latents is not None and latents.shape != shape:  # cached for a bucket that this run does without
            latents = None
        pixels = fit(subject.picture(target), size, target.box) if latents is None else None
        flip = rng.random() < (c.references.flip_variant if variant else c.references.flip_image)
        white = rng.random() < c.references.white
        seen = self._reference(subject, reference, flip, white)
        no_image, no_text = c.dropout.drop(rng.random())
        captions = [text for text in target.captions if text]
        caption = captions[int(rng.integers(len(captions)))] if captions else ""
        timestep = int(rng.integers(self.num_train_timesteps))
        noise, gamma_drawn = _normal(rng, shape), float(rng.random())
        return Sample(
            variant=variant,
            latents=latents,
            pixels=pixels,
            reference=seen,
            no_image=bool(no_image),
            input_ids=prompt_ids(self.tokenizer, "" if no_text else caption, c.text_pieces),
            timestep=timestep,
            noise=noise,
            gamma_drawn=gamma_drawn,
            posterior=_normal(rng, shape) if c.latents == "sample" else None,
        )

    def _fitting(self, bucket: int) -> Callable[[Frame], bool] | None:
        """Whether a frame is a bucket's target; None for every frame."""
        if len(self.sizes) == 1:
            return None
        return lambda frame: int(nearest(self.sizes, [(frame.width, frame.height)])[0]) == bucket

    def _reference(self, subject: Subject, frame: Frame, flip: bool, white: bool) -> Reference:
        """What the adapter reads of a frame, from the caches where they have it."""
        white = white and frame.mask_offset is not None
        caches = subject.caches
        cls = caches["clip"].get(frame, white, flip) if "clip" in caches else None
        patches = caches["dino"].get(frame, white, flip) if "dino" in caches else None
        keep = None if patches is None else caches["dino"].keep(frame, white, flip)
        clip_pixels = dino_pixels = None
        side = self.dino_size // self.dino_patch
        if cls is None or patches is None:
            mask = subject.mask(frame) if white else None
            if mask is not None and float(mask.max()) < MARKED:
                raise UnreadableError(f"the mask of {frame.frame_id} marks nothing; pack its dataset again")
            picture = subject.picture(frame)
            crop = reference_crop(self.config.references.crop, picture.size, frame.box, mask is not None)

            def seen(size: int) -> Prepared:
                try:
                    return prepare(picture, size, None if mask is None else mask[None], crop)
                except FlexIPError as error:
                    raise FlexIPError(f"{frame.frame_id}: {error} (references.crop in the config)") from error

            def flipped(grid: Tensor) -> Tensor:
                return grid.flip(-1) if flip else grid

            if cls is None:
                clip_pixels = flipped(seen(self.clip_size).pixels[0])
            if patches is None:
                prepared = seen(self.dino_size)
                dino_pixels = flipped(prepared.pixels[0])
                kept = keep_patches(prepared.subject, self.dino_patch)
                keep = None if kept is None else flipped(kept[0].reshape(side, side)).flatten()
        if keep is None:
            keep = torch.ones(side * side, dtype=torch.bool)
        return Reference(keep, cls, clip_pixels, patches, dino_pixels)

    def preview(self, count: int = SUBJECTS) -> Preview | None:
        """Up to `count` subjects of the split `val`, else of training, those with captions first; None without any.

        What cannot be read is said and passed over.
        """
        found: list[tuple[Image, str | Box, str]] = []
        for subject, target, reference in self._shown(count):
            try:
                picture = subject.picture(reference)
            except UnreadableError as error:
                log.warning(f"left out of the previews: {error}")
                continue
            crop = reference_crop(self.config.references.crop, picture.size, reference.box, masked=False)
            found.append((picture, crop, next((text for text in target.captions if text), "")))
            if len(found) == count:
                break
        return Preview(*map(list, zip(*found, strict=True))) if found else None

    def _shown(self, count: int) -> Iterator[tuple[Subject, Frame, Frame]]:
        """Validation subjects with a target and a reference: those with a caption, then those without, of which only
        a few times `count` are looked at."""
        bare = []
        for place, subject in enumerate(self.groups.validation()):
            if place >= LOOKED_AT * count:
                break
            try:
                target, reference = choose(subject.group, subject.group.variant, np.random.default_rng(0))
            except UnreadableError as error:
                log.warning(f"left out of the previews: {error}")
                continue
            if any(target.captions):
                yield subject, target, reference
            else:
                bare.append((subject, target, reference))
        yield from bare


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, np.float32))


def choose(
    group: Group, variant: bool, rng: np.random.Generator, fits: Callable[[Frame], bool] | None = None
) -> tuple[Frame, Frame]:
    """Target and reference of a group: two frames of a variant sample (§4.1); of an image sample the same frame, or one
    that was packed as its reference (the same picture, framed or cut out by whoever made the data).

    Args:
        fits: whether a frame is to be the target where one of the group's is; None for all.
    """
    targets = [f for f in group.frames if f.role in TARGET]
    if not targets:
        raise UnreadableError(f"{group.group_id} has no frame to be the target")
    if fits is not None:  # none does in a group that stands in for one that cannot be read
        targets = [f for f in targets if fits(f)] or targets
    target = targets[int(rng.integers(len(targets)))]
    if not variant:
        made = [f for f in group.frames if f.role == "reference"]
        return target, made[int(rng.integers(len(made)))] if made else target
    # A pair may have one reference only; a packer never makes a variant group of one frame.
    others = [f for f in group.frames if f.role in ("any", "reference") and f.frame_id != target.frame_id]
    if not others:
        raise UnreadableError(f"{group.group_id} has no second frame to be the reference")
    return target, others[int(rng.integers(len(others)))]


def open_samples(config: TrainConfig, frozen: Frozen, stage: int, world_size: int) -> SampleSet:
    """A stage's samples from the config's data folders.

    Raises:
        FlexIPError: as `check_groups`.
    """
    groups = Groups.open(config, frozen, config.stages[stage].quality)
    images = round(config.batch * config.image_share)
    check_groups(groups, config, stage, (images, config.batch - images))
    return SampleSet(config, groups, make_sampler(config, groups, stage, world_size), frozen)
