"""Frames of a video: shots, distance in time, the band of similarity, sharpness, damaged files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.data.format import Dataset
from flexip_model.data.pack.frame_choice import Scan, Seen, VideoChoice, choose
from flexip_model.data.pack.video import find_cuts, pick_frames, scan_video

from ..drawing import H, W, moving_disc, picture, save_video


def still(seed: int, frames: int) -> list[np.ndarray]:
    return [np.asarray(picture(seed))] * frames


def test_groups_stay_inside_a_shot_and_keep_a_tenth_of_the_video_apart(tmp_path: Path) -> None:
    path = save_video(tmp_path / "cuts.mp4", [moving_disc(1, 48), moving_disc(2, 30), moving_disc(3, 60)])
    groups = pick_frames(path, VideoChoice(frames=8))
    shots = ((0, 48), (48, 78), (78, 138))
    assert len(groups) == 3
    for (first, end), group in zip(shots, groups, strict=True):
        assert len(group) > 1 and all(first <= seen.number < end for seen in group)
        assert all(b.time - a.time >= 0.1 * 138 / 24 - 1e-6 for a, b in pairwise(group))
        assert all(abs(seen.time - seen.number / 24) < 1e-3 for seen in group)


def test_the_picture_is_that_of_the_number_and_time(tmp_path: Path) -> None:
    """Each frame has its own gray, so that a frame that is off by one shows."""
    frames = [np.full((H, W, 3), 20 + 3 * i, np.uint8) for i in range(60)]
    path = save_video(tmp_path / "grays.mp4", [frames])
    (group,) = pick_frames(path, VideoChoice(low=0.0, high=1.0))
    for seen in group:
        assert abs(float(np.asarray(seen.picture).mean()) - (20 + 3 * seen.number)) < 1.5


@pytest.mark.parametrize("seed", range(20))
def test_the_distance_in_time_holds_for_uneven_frame_rates(seed: int) -> None:
    random = np.random.default_rng(seed)
    times = np.sort(random.random(20)) ** random.uniform(0.3, 3) * 10
    seen = [
        Seen(i, float(t), int(t > 6), random.random(), random.integers(0, 256, (32, 32, 3), np.uint8))
        for i, t in enumerate(times)
    ]
    groups = choose(Scan(seen, 10.0), VideoChoice(frames=5, gap=0.15, low=0.0))
    assert any(len(group) > 1 for group in groups)
    for group in groups:
        assert len(group) <= 5 and all(b.time - a.time >= 1.5 - 1e-6 for a, b in pairwise(group))


@pytest.mark.parametrize("speed", [1.0, 4.0, 9.0])
def test_fast_motion_is_no_cut(tmp_path: Path, speed: float) -> None:
    frames = list(moving_disc(4, 40, speed))[: int(59 / speed)]
    assert len({seen.shot for seen in scan_video(save_video(tmp_path / "fast.mp4", [frames])).seen}) == 1


def test_a_cut_stands_out_from_what_is_around_it() -> None:
    calm, wild = np.full(20, 2.0), np.full(20, 30.0)
    calm[9] = wild[9] = 40.0
    assert find_cuts(calm) == [9]
    assert find_cuts(wild) == []
    assert find_cuts(np.array([0.0, 50.0])) == [1]


def test_a_video_where_nothing_moves_gives_no_group(tmp_path: Path) -> None:
    assert pick_frames(save_video(tmp_path / "still.mp4", [still(1, 40)]), VideoChoice()) == []


def test_motion_that_comes_back_gives_the_frames_where_it_is_away(tmp_path: Path) -> None:
    """Evenly spaced times may all show the resting picture: here the disc moves twice, for a moment each time."""
    frames = list(moving_disc(7, 40))
    away = [*range(0, 40, 3), *range(39, 0, -3)]
    order = [0] * 20 + away + [0] * 60 + away + [0] * 20
    (group,) = pick_frames(save_video(tmp_path / "back.mp4", [[frames[i] for i in order]]), VideoChoice(frames=2))
    assert len(group) == 2 and group[1].time - group[0].time >= 0.1 * len(order) / 24 - 1e-6


def test_another_thing_that_fades_in_is_not_the_same_group(tmp_path: Path) -> None:
    """A slow dissolve has no cut: the colors tell."""
    a, b = np.full((H, W, 3), (200, 30, 30), float), np.full((H, W, 3), (30, 60, 200), float)
    shares = np.clip(np.linspace(-1, 2, 96), 0, 1)
    noise = np.random.default_rng(0).integers(-20, 20, (96, H, W, 1))
    frames = [np.clip(a * (1 - s) + b * s + n, 0, 255).astype(np.uint8) for s, n in zip(shares, noise, strict=True)]
    path = save_video(tmp_path / "fade.mp4", [frames])
    assert len({seen.shot for seen in scan_video(path).seen}) == 1
    for group in pick_frames(path, VideoChoice(high=1.0)):
        red = [np.asarray(seen.picture)[..., 0].mean() > 115 for seen in group]
        assert len(set(red)) == 1


def test_the_sharp_frame_near_a_time_is_taken(tmp_path: Path) -> None:
    frames = []
    for i, frame in enumerate(moving_disc(5, 72)):
        image = Image.fromarray(frame)
        frames.append(np.asarray(image if i % 6 == 0 else image.filter(ImageFilter.GaussianBlur(4))))
    path = save_video(tmp_path / "blurred.mp4", [frames])
    numbers = [seen.number for group in pick_frames(path, VideoChoice(frames=3)) for seen in group]
    assert len(numbers) == 3 and all(number % 6 == 0 for number in numbers)


def test_short_shots_need_the_shot_as_measure(tmp_path: Path) -> None:
    path = save_video(tmp_path / "long.mp4", [moving_disc(seed, 24) for seed in range(1, 12)])
    assert pick_frames(path, VideoChoice()) == []
    groups = pick_frames(path, VideoChoice(gap_of="shot"))
    assert len(groups) == 11 and all(b.time - a.time >= 0.08 for group in groups for a, b in pairwise(group))


def test_captions_go_with_a_video_and_unreadable_ones_are_named(tmp_path: Path, capsys) -> None:
    source = tmp_path / "videos"
    for seed in range(19):
        save_video(source / f"{seed:02}.mp4", [moving_disc(seed, 30)])
    (source / "00.txt").write_text("a disc crosses a wall\n")
    content = (source / "03.mp4").read_bytes()
    (source / "99.mp4").write_bytes(content[: len(content) // 2])
    assert main(["data", "pack", "videos", str(source), str(tmp_path / "data"), "--val", "0"]) == 0
    out = capsys.readouterr().out
    assert "unreadable: 1" in out and "99.mp4" in out
    data = Dataset.open(tmp_path / "data", kinds=["video"])
    assert len(data) == 19
    assert {frame.captions for frame in data.group(0).frames} == {("a disc crosses a wall",)}
    assert all(data.group(i).variant for i in range(len(data)))


def test_choices_outside_their_range_are_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(FlexIPError, match="band of similarity"):
        VideoChoice(low=0.5, high=2.0)
    assert main(["data", "pack", "videos", str(tmp_path), str(tmp_path / "data"), "--gap", "1.5"]) == 2
    assert "gap between 0 and 1" in capsys.readouterr().err
