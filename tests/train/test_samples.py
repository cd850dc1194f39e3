"""Which sample comes when, and what it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flexip_model.common.errors import FlexIPError
from flexip_model.data.format import NewFrame, NewGroup, ShardWriter
from flexip_model.train.configs.sections import ConditioningDropout
from flexip_model.train.samples.batch import collate
from flexip_model.train.samples.sample_set import open_samples
from flexip_model.train.samples.sampler import Ticket, TicketBatchSampler, TicketSampler

from ..support.train_rig import config, png, tensors_of


def test_every_device_batch_holds_both_kinds_in_equal_numbers_and_no_group_twice_in_an_epoch() -> None:
    sampler = TicketSampler((6, 4), images=2, batch=4, world_size=2, seed=3)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for step in range(3):
        for rank in range(2):
            tickets = sampler.tickets(step, rank)
            assert [t.side for t in tickets] == [0, 0, 1, 1]
            for ticket in tickets:
                seen[ticket.side].append(sampler.group(ticket))
    assert sorted(seen[0][:6]) == list(range(6)) and sorted(seen[0][6:]) == list(range(6))
    assert all(sorted(seen[1][i : i + 4]) == list(range(4)) for i in (0, 4, 8))


def test_devices_share_the_samples_that_one_device_with_the_whole_batch_would_see() -> None:
    alone = TicketSampler((50, 50), images=4, batch=8, world_size=1, seed=0)
    shared = TicketSampler((50, 50), images=2, batch=4, world_size=2, seed=0)
    for step in range(10):
        parts = [*shared.tickets(step, 0), *shared.tickets(step, 1)]
        assert sorted(alone.tickets(step, 0)) == sorted(parts)


def test_a_sampler_that_starts_later_gives_what_the_whole_one_gives_there() -> None:
    sampler = TicketSampler((9, 5), images=1, batch=2, world_size=1, seed=1)
    whole, later = (TicketBatchSampler(sampler, rank=0, first=first, end=9) for first in (0, 4))
    assert list(later) == list(whole)[4:] and len(later) == 5


def test_a_sample_depends_on_its_ticket_alone_and_variants_see_another_picture(data: Path, tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    c = config(data, tmp_path, references={"white": 0.0, "flip_variant": 0.0, "crop": "center"})
    frozen = load_frozen(c)
    first, second = (open_samples(c, frozen, 0, 1) for _ in range(2))
    for ticket in (Ticket(0, 3, 0), Ticket(1, 11, 0)):
        a, b = first[ticket], second[ticket]
        one, again = tensors_of(collate([a])), tensors_of(collate([b]))
        assert one.keys() == again.keys() and all(torch.equal(one[name], again[name]) for name in one)
        target = torch.nn.functional.interpolate(a.pixels[None] / 2 + 0.5, 112, mode="bicubic", antialias=True)[0]
        distance = float((target - a.reference.clip_pixels).abs().mean())
        assert distance < 0.02 if ticket.side == 0 else distance > 0.02
    assert first[Ticket(0, 3, 0)].timestep != first[Ticket(0, 4, 0)].timestep


def test_each_case_of_the_dropout_has_its_part_of_what_is_drawn() -> None:
    no_image, no_text = ConditioningDropout(image=0.1, text=0.2, both=0.3).drop(
        [0, 0.0999, 0.1, 0.2999, 0.301, 0.599, 0.601]
    )
    assert no_image.tolist() == [True, True, False, False, True, True, False]
    assert no_text.tolist() == [False, False, True, True, True, True, False]


def test_dropout_has_three_exclusive_cases_of_the_share_asked_for(data: Path, tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    c = config(data, tmp_path, size=16, dropout={"image": 0.2, "text": 0.2, "both": 0.2})
    samples = open_samples(c, load_frozen(c), 0, 1)
    empty = samples.tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    cases = []
    for number in range(120):
        sample = samples[Ticket(0, number, 0)]
        cases.append((sample.no_image, bool(torch.equal(sample.input_ids, empty))))
    shares = {case: cases.count(case) / len(cases) for case in set(cases)}
    assert all(abs(shares[case] - 0.2) < 0.12 for case in ((True, False), (False, True), (True, True)))


def test_a_flipped_reference_has_its_mask_flipped_with_it(data: Path, tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    found = []
    for share in (0.0, 1.0):
        c = config(data, tmp_path, references={"white": 1.0, "flip_image": share, "crop": "pad"})
        found.append(open_samples(c, load_frozen(c), 0, 1)[Ticket(0, 1, 0)])
    plain, flipped = found
    assert torch.equal(plain.reference.dino_pixels.flip(-1), flipped.reference.dino_pixels)
    assert torch.equal(plain.reference.keep.unflatten(0, (16, 16)).flip(-1).flatten(), flipped.reference.keep)
    assert not plain.reference.keep.all()


def test_padding_is_read_neither_in_training_nor_in_the_nodes(tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    picture = Image.new("RGB", (128, 64), "red")
    content = png(picture)
    writer = ShardWriter(tmp_path / "data", "wide", "CC0", note="drawn for a test", max_bytes=1 << 16)
    for kind, count in (("image", 1), ("video", 2)):
        frames = tuple(NewFrame(content, 128, 64, 1.0, f"{i:016x}", captions=("a red thing",)) for i in range(count))
        writer.add(NewGroup(f"wide-{kind}", kind, frames))
    writer.close()
    c = config(tmp_path / "data", tmp_path, references={"white": 0.0, "flip_image": 0.0, "crop": "pad"})
    frozen = load_frozen(c)
    keep = open_samples(c, frozen, 0, 1)[Ticket(0, 0, 0)].reference.keep
    assert keep.unflatten(0, (16, 16))[4:12].all() and keep.float().mean() == 0.5
    seen = frozen.encoders.encode([picture], crop="pad").keep
    assert seen is not None and torch.equal(keep, seen[0])


def wide(folder: Path, mask: np.ndarray) -> Path:
    """One image group: a picture of 160 × 64 whose subject is what the mask (64, 160) marks, in red."""
    pixels = np.full((64, 160, 3), 90, np.uint8)
    pixels[mask] = (220, 0, 0)
    rows, columns = mask.nonzero()
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    picture, shape = Image.fromarray(pixels), Image.fromarray(mask.astype(np.uint8) * 255)
    frame = NewFrame(
        png(picture), 160, 64, 1.0, "0" * 16, mask=png(shape), box=tuple(map(float, box)), captions=("a red thing",)
    )
    writer = ShardWriter(folder, "wide", "CC0", max_bytes=1 << 16)
    writer.add(NewGroup("wide-0", "image", (frame,)))
    writer.close()
    return folder


def test_a_subject_at_the_side_is_in_target_and_reference_alike(tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    mask = np.zeros((64, 160), bool)
    mask[16:48, 112:152] = True
    data = wide(tmp_path / "data", mask)
    for white in (0.0, 1.0):
        c = config(data, tmp_path, image_share=1, references={"crop": "center", "white": white})
        sample = open_samples(c, load_frozen(c), 0, 1)[Ticket(0, 0, 0)]
        target = torch.nn.functional.interpolate(sample.pixels[None] / 2 + 0.5, 112, mode="bicubic", antialias=True)[0]
        red = [(pixels[0] - pixels[1] > 0.4).float() for pixels in (target, sample.reference.clip_pixels)]
        assert red[0].mean() > 0.25 and float((red[0] - red[1]).abs().mean()) < 0.02


def test_what_the_config_asks_for_and_a_group_cannot_give_is_no_unreadable_file(tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    mask = np.zeros((64, 160), bool)
    mask[:, :8], mask[:, -8:] = True, True  # the square in the middle of its box has nothing of it
    c = config(wide(tmp_path / "data", mask), tmp_path, image_share=1, references={"crop": "center", "white": 1.0})
    samples = open_samples(c, load_frozen(c), 0, 1)
    with pytest.raises(
        FlexIPError, match=r"wide, group 'wide-0' cannot be a sample .*crop mode subject or pad"
    ) as told:
        samples[Ticket(0, 0, 0)]
    assert "references.crop" in str(told.value) and "could not be read" not in str(told.value)
