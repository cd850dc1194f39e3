"""Targets that keep their proportions: batches of one size, exact halves, exact resume, caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError, UnreadableError
from flexip_model.data.format import Dataset, NewFrame, NewGroup, ShardWriter
from flexip_model.images.buckets import bucket_sizes
from flexip_model.train.frozen import load_frozen
from flexip_model.train.samples.batch import collate
from flexip_model.train.samples.buckets import ROUND, BucketSampler
from flexip_model.train.samples.sample_set import SampleSet, open_samples
from flexip_model.train.samples.sampler import TicketBatchSampler
from flexip_model.train.trainer import Trainer

from ..support.paths import SHIPPED
from ..support.train_rig import config, png, tensors, train

BUCKETS = {"step": 16, "limit": 2.0}
WIDE, TALL, SQUARE = (160, 96), (96, 160), (128, 128)


def picture(size: tuple[int, int], number: int) -> Image.Image:
    """Noise with a red left edge and a green right one."""
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
    pixels[:, :8], pixels[:, -8:] = (255, 0, 0), (0, 255, 0)
    return Image.fromarray(pixels)


def write(folder: Path, groups: list[tuple[str, tuple[int, int]]], role: str = "any") -> Path:
    """A data folder with these groups, kinds and sizes; those of two frames have a square one at the end. Square images
    have this role."""
    writer = ShardWriter(folder, "shapes", "CC0", max_bytes=1 << 16)
    for number, (kind, size) in enumerate(groups):
        sizes = [size] if kind == "image" else [size, size, SQUARE]
        frames = [
            NewFrame(
                png(picture(wh, 10 * number + i)),
                *wh,
                1.0,
                f"{number:015x}{i:x}",
                role=role if (kind, size) == ("image", SQUARE) else "any",
                captions=(f"thing {number}",),
            )
            for i, wh in enumerate(sizes)
        ]
        writer.add(NewGroup(f"shapes-{number:03}", kind, tuple(frames)))
    writer.close()
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six wide, four tall and two square groups of either side, and one very tall image."""
    sizes = [*[WIDE] * 6, *[TALL] * 4, *[SQUARE] * 2]
    groups = [(kind, size) for kind in ("image", "video") for size in sizes] + [("image", (40, 400))]
    return write(tmp_path_factory.mktemp("shapes"), groups)


def opened(folder: Path, output: Path, **changes: Any) -> SampleSet:
    c = config(folder, output, **{"buckets": BUCKETS, **changes})
    return open_samples(c, load_frozen(c), 0, 1)


def test_each_micro_step_has_one_size_and_its_exact_share_of_either_side(shapes: Path, tmp_path: Path) -> None:
    samples = opened(shapes, tmp_path)
    sampler = samples.sampler
    assert isinstance(sampler, BucketSampler) and set(samples.sizes) == {(64, 64), (80, 48), (48, 80)}
    shared = BucketSampler(sampler.sizes, sampler.members, images=1, batch=2, world_size=2, seed=0, stage=0)
    for step in range(50):
        tickets = sampler.tickets(step, 0)
        assert [t.side for t in tickets] == [0, 0, 1, 1] and len({t.bucket for t in tickets}) == 1
        assert sorted(tickets) == sorted([*shared.tickets(step, 0), *shared.tickets(step, 1)])
    drawn = np.bincount([sampler.tickets(step, 0)[0].bucket for step in range(ROUND)], minlength=3)
    assert drawn.tolist() == sampler.quotas.tolist() and sum(drawn) == ROUND
    # 6 of 13 images and 6 of 12 videos are wide, 5 and 4 tall, 2 and 2 square.
    wanted = {(80, 48): (6 / 13 + 6 / 12) / 2, (48, 80): (5 / 13 + 4 / 12) / 2, (64, 64): (2 / 13 + 2 / 12) / 2}
    for size, count in zip(sampler.sizes, drawn, strict=True):
        assert count == pytest.approx(ROUND * wanted[size], abs=2)
    assert any("targets in 3 sizes: 64×64 (2 image and 2 variant groups" in r for r in samples.groups.remarks)
    later, whole = (TicketBatchSampler(sampler, rank=0, first=first, end=ROUND + 9) for first in (ROUND + 3, 0))
    assert list(later) == list(whole)[ROUND + 3 :]
    every = [ticket for step in range(2 * ROUND) for ticket in sampler.tickets(step, 0)]
    assert len(set(every)) == len(every) == 8 * ROUND, "a sample that was drawn in the round before"


def test_a_buckets_groups_all_come_before_any_comes_again(shapes: Path, tmp_path: Path) -> None:
    sampler = opened(shapes, tmp_path).sampler
    assert isinstance(sampler, BucketSampler)
    seen: dict[tuple[int, int], list[int]] = {}
    for step in range(60):
        for ticket in sampler.tickets(step, 0):
            seen.setdefault((ticket.side, ticket.bucket), []).append(sampler.group(ticket))
    for (side, bucket), groups in seen.items():
        members = sampler.members[side][bucket].tolist()
        for start in range(0, len(groups) - len(members) + 1, len(members)):
            assert sorted(groups[start : start + len(members)]) == sorted(members)


def test_targets_keep_their_proportions_and_lose_nothing_at_the_edges(shapes: Path, tmp_path: Path) -> None:
    samples = opened(shapes, tmp_path)
    met = set()
    for step in range(40):
        batch = collate([samples[ticket] for ticket in samples.sampler.tickets(step, 0)])
        width, height = samples.sizes[samples.sampler.tickets(step, 0)[0].bucket]
        assert batch.latents.pixels is not None and batch.latents.pixels.shape == (4, 3, height, width)
        assert batch.noise.shape == (4, 4, height // 8, width // 8)
        met.add((width, height))
        left, right = batch.latents.pixels[..., height // 2, 1], batch.latents.pixels[..., height // 2, -2]
        assert (left[:, 0] > 0.7).all() and (left[:, 1] < -0.7).all()
        assert (right[:, 1] > 0.7).all() and (right[:, 0] < -0.7).all()
    assert met == set(samples.sizes)


def test_a_size_that_one_side_lacks_goes_to_the_nearest_and_one_size_is_no_trouble(tmp_path: Path) -> None:
    groups = [("image", WIDE)] * 4 + [("image", SQUARE)] * 2 + [("video", SQUARE)] * 3
    samples = opened(write(tmp_path / "data", groups), tmp_path)
    assert samples.sizes == ((64, 64),)
    batch = collate([samples[ticket] for ticket in samples.sampler.tickets(0, 0)])
    assert batch.latents.pixels is not None and batch.latents.pixels.shape == (4, 3, 64, 64)
    # More of a batch than there are groups: they come again within it, and none is cut to another shape.
    alone = opened(tmp_path / "data", tmp_path, image_share=1, batch=16)
    assert set(alone.sizes) == {(64, 64), (80, 48)}


def test_a_bucket_without_any_readable_target_is_filled_from_the_others(tmp_path: Path, monkeypatch) -> None:
    # The square images are references alone, and the tall ones cannot be read.
    groups = [("image", size) for size in (*[WIDE] * 20, *[TALL] * 2, *[SQUARE] * 2)]
    samples = opened(write(tmp_path / "data", groups, "reference"), tmp_path, image_share=1, batch=2)
    whole = Dataset.picture

    def damaged(dataset: Dataset, frame: Any) -> Image.Image:
        if (frame.width, frame.height) == TALL:
            raise UnreadableError(f"{frame.frame_id} is damaged")
        return whole(dataset, frame)

    monkeypatch.setattr(Dataset, "picture", damaged)
    met = {}
    for step in range(60):
        for ticket in samples.sampler.tickets(step, 0):
            sample, (width, height) = samples[ticket], samples.sizes[ticket.bucket]
            assert sample.pixels is not None and sample.pixels.shape == (3, height, width)
            met[width, height] = " ".join(sample.complaints)
    assert met[80, 48] == "" and "is damaged" in met[48, 80] and "no frame to be the target" in met[64, 64]


def test_a_size_is_left_out_where_its_groups_would_come_too_often(tmp_path: Path) -> None:
    for few, kept in ((8, True), (1, False)):
        videos = [("video", WIDE)] * few + [("video", SQUARE)] * (40 - few)
        data = write(tmp_path / str(few), [("image", WIDE)] * 20 + [("image", SQUARE)] * 20 + videos)
        sampler = opened(data, tmp_path).sampler
        assert isinstance(sampler, BucketSampler) and ((80, 48) in sampler.sizes) == kept
        assert sum(map(len, sampler.members[0])) == sum(map(len, sampler.members[1])) == 40
    rare = write(tmp_path / "rare", [("image", SQUARE)] * (ROUND + 8) + [("image", WIDE)])
    assert opened(rare, tmp_path, image_share=1).sizes == ((64, 64),), "less than one in all micro-steps of a round"


def test_a_step_or_limit_without_buckets_is_refused(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--bucket-step", "16"], ["--bucket-limit", "3"]):
        assert main(["data", "cache", str(shapes), "--vae", str(SHIPPED), "--size", "64", *more]) == 2
        assert "give --buckets too, or leave them out" in capsys.readouterr().err


def test_a_run_in_buckets_goes_on_to_the_same_bits_and_with_no_others(shapes: Path, tmp_path: Path) -> None:
    changes = {"buckets": BUCKETS, "accumulation": 2}
    train(shapes, tmp_path / "whole", **changes, stages=[{"steps": 6}])
    train(shapes, tmp_path / "halves", **changes, stages=[{"steps": 3}])
    train(shapes, tmp_path / "halves", **changes, stages=[{"steps": 6}])
    whole, halves = (tensors(tmp_path / name, 6) for name in ("whole", "halves"))
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())
    trainer = Trainer(config(shapes, tmp_path / "halves", accumulation=2, stages=[{"steps": 6}]))
    with pytest.raises(FlexIPError, match="was started with buckets .*, the config now says nothing; put it back"):
        trainer.run()


def test_latents_cached_in_buckets_are_those_that_training_makes(tmp_path: Path) -> None:
    # Of the tall pictures one side has none, so that training has no size for them, and their latents are of no use.
    data = write(tmp_path / "data", [("image", WIDE)] * 3 + [("image", TALL)] * 2 + [("video", WIDE)] * 3)
    fresh = opened(data, tmp_path)
    arguments = ["--size", "64", "--buckets", "--bucket-step", "16", "--crop", "center"]
    assert main(["data", "cache", str(data), "--vae", str(SHIPPED), *arguments]) == 0
    cached = opened(data, tmp_path)
    vae = load_frozen(cached.config)
    found = 0
    for step in range(8):
        for ticket in cached.sampler.tickets(step, 0):
            a, b = fresh[ticket], cached[ticket]
            assert a.pixels is not None and torch.equal(a.noise, b.noise)
            if b.latents is None:
                assert torch.equal(a.pixels, b.pixels) and a.pixels.shape == (3, 48, 80)
            else:
                assert torch.allclose(vae.encode_latents(a.pixels[None])[0], b.latents, atol=2e-3, rtol=1e-3)
                found += 1
    assert found > 20
    square = opened(data, tmp_path, buckets=None)
    assert any("another crop (buckets of 16 px, at most 2 to 1" in remark for remark in square.groups.remarks)


def test_a_size_that_no_step_divides_is_refused(shapes: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--vae", str(SHIPPED), "--size", "48", "--buckets", "--bucket-step", "12"]
    assert main(["data", "cache", str(shapes), *arguments]) == 2
    assert "buckets have a step of 12 px; expected a multiple of 8" in capsys.readouterr().err
    with pytest.raises(FlexIPError, match="size is 96, and buckets have a step of 64; give a size that is a multiple"):
        config(shapes, tmp_path, size=96, buckets={})
    assert len(bucket_sizes(64, 16)) == 3
