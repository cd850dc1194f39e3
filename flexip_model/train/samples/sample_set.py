"""Samples from packed data: target, reference, caption and everything that is drawn for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ...common.errors import FlexIPError
from ...images.crops import square
from ...images.preprocess import Prepared, keep_patches, prepare
from ..configs.options import TrainConfig
from ..frozen import Frozen
from ..preview import SUBJECTS, Preview
from .batch import Reference, Sample
from .checks import check_groups
from .groups import Groups, Subject
from .sampler import SIDES, Ticket, TicketSampler

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...data.format import Frame, Group

ATTEMPTS = 8
"""Groups that are tried for one sample before an unreadable place ends the run (our choice)."""


class SampleSet(TorchDataset[Sample]):
    """One stage's samples; an item is asked for by its ticket.

    Attributes:
        sampler: which group a ticket takes, and its random numbers.
    """

    def __init__(self, config: TrainConfig, groups: Groups, sampler: TicketSampler, frozen: Frozen) -> None:
        self.config, self.groups, self.sampler = config, groups, sampler
        self.tokenizer = frozen.tokenizer
        self.clip_size, self.dino_size = frozen.clip.image_size, frozen.dino.image_size
        self.dino_patch = frozen.dino.patch
        self.latent_side = config.size // 2 ** (len(frozen.vae.config.block_out_channels) - 1)
        self.num_train_timesteps = int(frozen.scheduler.config.num_train_timesteps)

    def __getitem__(self, ticket: Ticket) -> Sample:
        """A sample; where a group cannot be read, another one of its side takes its place and is counted.

        Raises:
            FlexIPError: `ATTEMPTS` groups in a row could not be read.
        """
        rng = self.sampler.rng(ticket)
        number = self.sampler.group(ticket)
        complaint: Exception | None = None
        for attempt in range(ATTEMPTS):
            try:
                sample = self._make(self.groups.get(ticket.side, number), ticket.side == 1, rng)
                return replace(sample, unreadable=attempt)
            except (OSError, ValueError, SyntaxError) as error:
                complaint = error
                number = int(rng.integers(self.sampler.counts[ticket.side]))
        raise FlexIPError(f"{ATTEMPTS} {SIDES[ticket.side]} groups in a row could not be read, the last: {complaint}")

    def _make(self, subject: Subject, variant: bool, rng: np.random.Generator) -> Sample:
        # Another order of what is read and drawn would give other samples: a picture that cannot be read ends it early.
        target, reference = choose(subject.group, variant, rng)
        c = self.config
        latents = subject.caches["latents"].get(target) if "latents" in subject.caches else None
        pixels = square(subject.picture(target), c.size, target.box) if latents is None else None
        flip = rng.random() < (c.references.flip_variant if variant else c.references.flip_image)
        white = rng.random() < c.references.white
        seen = self._reference(subject, reference, flip, white)
        no_image, no_text = c.dropout.drop(rng.random())
        captions = [text for text in target.captions if text]
        caption = captions[int(rng.integers(len(captions)))] if captions else ""
        input_ids: Tensor = self.tokenizer(
            "" if no_text else caption, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids[0]
        return Sample(
            variant=variant,
            latents=latents,
            pixels=pixels,
            reference=seen,
            no_image=bool(no_image),
            input_ids=input_ids,
            timestep=int(rng.integers(self.num_train_timesteps)),
            noise=torch.from_numpy(rng.standard_normal((4, self.latent_side, self.latent_side), np.float32)),
            gamma_drawn=float(rng.random()),
        )

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
            crop = "pad" if mask is None and self.config.references.crop == "subject" else self.config.references.crop
            picture = subject.picture(frame)

            def seen(size: int) -> Prepared:
                return prepare(picture, size, None if mask is None else mask[None], crop)

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
        """Up to `count` subjects of the split `val`, else of training; None without any."""
        references: list[Image] = []
        prompts: list[str] = []
        for subject in self.groups.validation(count):
            target, reference = choose(subject.group, subject.group.variant, np.random.default_rng(0))
            references.append(subject.picture(reference))
            prompts.append(next((text for text in target.captions if text), ""))
        return Preview(references, prompts) if references else None


def choose(group: Group, variant: bool, rng: np.random.Generator) -> tuple[Frame, Frame]:
    """Target and reference of a group: two frames of a variant sample (§4.1); of an image sample the same frame, or one
    that was packed as its reference (the same picture, framed or cut out by whoever made the data)."""
    targets = [f for f in group.frames if f.role in ("any", "target")]
    target = targets[int(rng.integers(len(targets)))]
    if not variant:
        made = [f for f in group.frames if f.role == "reference"]
        return target, made[int(rng.integers(len(made)))] if made else target
    # A pair may have one reference only; a packer never makes a variant group of one frame.
    others = [f for f in group.frames if f.role in ("any", "reference") and f.frame_id != target.frame_id]
    if not others:
        raise FlexIPError(f"{group.group_id} has no second frame to be the reference")
    return target, others[int(rng.integers(len(others)))]


def open_samples(config: TrainConfig, frozen: Frozen, stage: int, world_size: int) -> SampleSet:
    """A stage's samples from the config's data folders.

    Raises:
        FlexIPError: as `check_groups`.
    """
    groups = Groups.open(config, frozen, config.stages[stage].quality)
    images = round(config.batch * config.image_share)
    check_groups(groups, config, stage, (images, config.batch - images))
    sampler = TicketSampler(
        groups.counts, images=images, batch=config.batch, world_size=world_size, seed=config.seed, stage=stage
    )
    return SampleSet(config, groups, sampler, frozen)
