"""Which sizes there are for pictures of any proportions, and which of them a picture goes to."""

from __future__ import annotations

import pytest

from flexip_model.common.errors import FlexIPError
from flexip_model.images import buckets
from flexip_model.images.buckets import bucket_sizes, nearest


def test_buckets_have_the_squares_area_and_sides_that_the_unet_can_halve() -> None:
    assert bucket_sizes(512) == [(512, 512), (384, 640), (448, 576), (576, 448), (640, 384)]
    many = bucket_sizes(512, 64, 4.0)
    assert (1024, 256) in many and (256, 1024) in many and len(set(many)) == len(many)
    for width, height in many:
        assert width % 64 == height % 64 == 0 and 512 * 512 - 64 * max(width, height) < width * height <= 512 * 512
    assert bucket_sizes(512, 64, 1.0) == [(512, 512)]
    with pytest.raises(FlexIPError, match="500 px and buckets have a step of 64 px; expected a multiple"):
        bucket_sizes(500)


def test_a_picture_goes_where_least_of_it_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "AT_ONCE", 3)
    sizes = bucket_sizes(512)
    pictures = [(800, 800), (1920, 1080), (1080, 1920), (640, 480), (480, 640), (3000, 10), (101, 100)]
    assert [sizes[place] for place in nearest(sizes, pictures)] == [
        *((512, 512), (640, 384), (384, 640), (576, 448), (448, 576), (640, 384), (512, 512))
    ]
