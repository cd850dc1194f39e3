"""Samples from packed data: target, reference, caption and everything that is drawn for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ...common.errors import FlexIPError
from ...images.crops import square
from ...images.preprocess import keep_patches, prepare
from ..configs.options import TrainConfig
from ..frozen import Frozen
from ..preview import SUBJECTS, Preview
from .groups import Groups, Subject
from .order import KINDS, Order, Ticket

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...data.format import Frame, Group

ATTEMPTS = 8
"""Groups that are tried for one sample before an unreadable place ends the run (our choice)."""


class SampleSet(TorchDataset):
    """One stage's samples; an item is asked for by its ticket.

    Attributes:
        order: which group a ticket takes, and its random numbers.
    """

    def __init__(self, config: TrainConfig, groups: Groups, order: Order, frozen: Frozen) -> None:
        self.config, self.groups, self.order = config, groups, order
        self.tokenizer = frozen.tokenizer
        self.clip_size, self.dino_size = frozen.clip.image_size, frozen.dino.image_size
        self.dino_patch = frozen.dino.patch
        self.latent_side = config.size // 2 ** (len(frozen.vae.config.block_out_channels) - 1)
        self.steps = int(frozen.scheduler.config.num_train_timesteps)

    def __getitem__(self, ticket: Ticket) -> dict[str, Any]:
        """A sample; where a group cannot be read, another one of its kind takes its place and is counted.

        Raises:
            FlexIPError: `ATTEMPTS` groups in a row could not be read.
        """
        rng = self.order.rng(ticket)
        number = self.order.group(ticket)
        complaint: Exception | None = None
        for attempt in range(ATTEMPTS):
            try:
                return self._make(self.groups.get(ticket.kind, number), ticket.kind == 1, rng) | {"unreadable": attempt}
            except (OSError, ValueError, SyntaxError) as error:
                complaint = error
                number = int(rng.integers(self.order.counts[ticket.kind]))
        raise FlexIPError(f"{ATTEMPTS} {KINDS[ticket.kind]} groups in a row could not be read, the last: {complaint}")

    def _make(self, subject: Subject, variant: bool, rng: np.random.Generator) -> dict[str, Any]:
        target, reference = choose(subject.group, variant, rng)
        c = self.config
        sample: dict[str, Any] = {"variant": variant}
        latents = subject.caches["latents"].get(target) if "latents" in subject.caches else None
        if latents is None:
            sample["pixels"] = square(subject.picture(target), c.size, target.box)
        else:
            sample["latents"] = latents
        flip = rng.random() < (c.references.flip_variant if variant else c.references.flip_image)
        white = rng.random() < c.references.white
        sample |= self._reference(subject, reference, flip, white)
        case = rng.random()
        d = c.dropout
        sample["no_image"] = case < d.image or d.image + d.text <= case < d.image + d.text + d.both
        no_text = d.image <= case < d.image + d.text + d.both
        captions = [text for text in target.captions if text]
        caption = captions[int(rng.integers(len(captions)))] if captions else ""
        sample["ids"] = self.tokenizer(
            "" if no_text else caption, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids[0]
        sample["steps"] = int(rng.integers(self.steps))
        sample["noise"] = torch.from_numpy(rng.standard_normal((4, self.latent_side, self.latent_side), np.float32))
        sample["gamma_drawn"] = float(rng.random())
        return sample

    def _reference(self, subject: Subject, frame: Frame, flip: bool, white: bool) -> dict[str, Any]:
        """[CLS] and patches from the caches, or the pictures for the encoders; and the patches to read."""
        white = white and frame.mask_offset is not None
        found: dict[str, Any] = {}
        for name, kind in (("cls", "clip"), ("patches", "dino")):
            cached = subject.caches[kind].get(frame, white, flip) if kind in subject.caches else None
            if cached is not None:
                found[name] = cached
        side = self.dino_size // self.dino_patch
        keep = subject.caches["dino"].keep(frame, white, flip) if "patches" in found else None
        if len(found) < 2:
            mask = subject.mask(frame) if white else None
            crop = "pad" if mask is None and self.config.references.crop == "subject" else self.config.references.crop
            picture = subject.picture(frame)
            sizes = {"cls": ("clip_pixels", self.clip_size), "patches": ("dino_pixels", self.dino_size)}
            for raw, size in (sizes[name] for name in sizes if name not in found):
                seen = prepare(picture, size, None if mask is None else mask[None], crop)
                found[raw] = seen.pixels[0].flip(-1) if flip else seen.pixels[0]
                if raw == "dino_pixels":
                    kept = keep_patches(seen.subject, self.dino_patch)
                    grid = None if kept is None else kept[0].unflatten(0, (side, side))
                    keep = None if grid is None else (grid.flip(-1) if flip else grid).flatten()
        return found | {"keep": torch.ones(side * side, dtype=torch.bool) if keep is None else keep}

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
    """Target and reference of a group: two frames of a variant sample [3.4]; of an image sample the same frame, or one
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


def open_samples(config: TrainConfig, frozen: Frozen, stage: int, world: int) -> SampleSet:
    """A stage's samples from the config's data folders.

    Raises:
        FlexIPError: no groups of a kind that the batch needs, or none with a caption.
    """
    groups = Groups.open(config, frozen, config.stages[stage].quality)
    images = round(config.batch * config.image_share)
    for kind, wanted in enumerate((images, config.batch - images)):
        if wanted and not groups.counts[kind]:
            share = 1 - kind
            raise FlexIPError(
                f"stage {stage + 1} has no {KINDS[kind]} groups in {', '.join(map(str, map(Path, config.data)))}; pack "
                f"some, or set image_share: {1 - share} to train on {KINDS[1 - kind]} groups alone (the gate then "
                "learns one side only)"
            )
    order = Order(groups.counts, images, config.batch, world, config.seed, stage)
    return SampleSet(config, groups, order, frozen)


CACHED = {"latents": "pixels", "cls": "clip_pixels", "patches": "dino_pixels"}
"""What may come from a cache, and what it is made from otherwise."""


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples to a batch of tensors; the values of the keys of `CACHED` are those of the samples that have one, and
    `NAME_cached` (B,) bool says which have."""
    batch: dict[str, Any] = {}
    for key in dict.fromkeys(key for sample in samples for key in sample):
        values = [sample[key] for sample in samples if key in sample]
        batch[key] = torch.stack(values) if isinstance(values[0], Tensor) else torch.tensor(values)
    for name in CACHED:
        batch[f"{name}_cached"] = torch.tensor([name in sample for sample in samples])
    return batch
