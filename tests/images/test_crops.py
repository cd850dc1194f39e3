"""Which square of a picture is cut out."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from flexip_model.common.errors import FlexIPError
from flexip_model.images.crops import fit, region


def test_latents_keep_the_subject_that_stands_at_the_side() -> None:
    assert region(300, 100) == (100, 0, 100, 100)
    assert region(300, 100, (210, 0, 290, 100)) == (200, 0, 100, 100)
    assert region(300, 100, (120, 0, 160, 100)) == (90, 0, 100, 100)
    assert region(100, 300, (0, 0, 100, 40)) == (0, 0, 100, 100)
    assert region(300, 100, (-500, 0, 20, 100)) == (0, 0, 100, 100)
    for bad in ((5, 5, 5, 9), (float("nan"), 0, 9, 9), (0, 0, 9)):
        with pytest.raises(FlexIPError, match="expected x0 < x1"):
            region(300, 100, bad)
    wide = Image.new("RGB", (300, 100))
    wide.paste((255, 0, 0), (200, 0, 300, 100))
    right = fit(wide, (16, 16), (210, 0, 290, 100))
    assert right.shape == (3, 16, 16) and torch.equal(right[:, 8, 8], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(fit(wide, (16, 16))[:, 8, 8], torch.tensor([-1.0, -1.0, -1.0]))


def test_a_shape_takes_the_largest_part_of_its_proportions_with_the_subject() -> None:
    assert region(300, 100, shape=(640, 384)) == (66, 0, 167, 100)
    assert region(300, 100, (280, 0, 300, 100), (640, 384)) == (133, 0, 167, 100)
    assert region(100, 300, shape=(640, 384)) == (0, 120, 100, 60)
    assert region(10, 1000, shape=(1000, 10)) == (0, 500, 10, 1)
    wide = Image.new("RGB", (300, 100))
    wide.paste((255, 0, 0), (0, 0, 10, 100))
    wide.paste((0, 255, 0), (290, 0, 300, 100))
    whole = fit(wide, (48, 16))
    assert whole.shape == (3, 16, 48)
    assert whole[:, 8, 0].tolist() == [1.0, -1.0, -1.0] and whole[:, 8, -1].tolist() == [-1.0, 1.0, -1.0]
