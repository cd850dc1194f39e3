"""Contact sheets, and pictures over white."""

import numpy as np
import pytest
from PIL import Image

from flexip_model.images.contact_sheet import PAPER, draw_cells
from flexip_model.images.pictures import on_white


def test_cells_stand_row_by_row_each_under_its_label():
    colors = ("red", "lime", "blue")
    sheet = draw_cells([(color, Image.new("RGBA", (9, 9), color)) for color in colors], 2, side=20)
    assert sheet.mode == "RGB" and sheet.size == (2 * 26 + 6, 2 * 48 + 6)
    corners = [sheet.getpixel((6 + 26 * (n % 2), 6 + 22 + 48 * (n // 2))) for n in range(3)]
    assert corners == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert sheet.getpixel((6 + 26, 6 + 22 + 48)) == PAPER
    bare = draw_cells([("", Image.new("RGB", (9, 9), color)) for color in colors], 3, side=20)
    assert bare.size == (3 * 26 + 6, 26 + 6) and bare.getpixel((6, 6)) == (255, 0, 0)
    words = draw_cells([("", "words")], 1)
    assert words.getpixel((6, 6)) == (225, 225, 225) and np.asarray(words).min() < 100


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_what_covers_all_stays_as_it_is_over_white(mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)).convert(mode)
    assert np.array_equal(np.asarray(on_white(picture)), np.asarray(picture.convert("RGB")))


def test_a_transparent_picture_lies_on_white_at_its_place():
    picture = Image.new("RGBA", (2, 2), (200, 0, 0, 128))
    on = np.asarray(on_white(picture, (4, 3), (1, 0)))
    assert on.shape == (3, 4, 3)
    assert np.abs(on[:2, 1:3].astype(int) - (227, 127, 127)).max() <= 1
    assert (on[2] == 255).all() and (on[:, 0] == 255).all() and (on[:, 3] == 255).all()
