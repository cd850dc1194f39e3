"""The sheet of maps: what is white, what shares a scale, what is said where there is no map."""

import numpy as np
import torch
from PIL import Image

from flexip_model.images.contact_sheet import BOARD
from flexip_model.images.map_sheet import COLUMNS, SIDE, MapRows, draw_map, draw_map_sheet

GAP, LINE = 6, 22


def cell(sheet, row, column):
    top, left = GAP + row * (SIDE + LINE + GAP) + LINE, GAP + column * (SIDE + GAP)
    return np.asarray(sheet)[top : top + SIDE, left : left + SIDE]


def rows(scale=1.0, **changes):
    ramp = torch.linspace(0, 1, 16).reshape(4, 4)
    maps = {"queries": 0.9 + ramp / 20, "cls": ramp / 20, "s": ramp, "text": ramp}
    sizes = {name: scale * values for name, values in maps.items()}
    given = {"label": "a", "picture": Image.new("RGB", (64, 64), "red"), "weights": maps, "contributions": sizes}
    return MapRows(**{**given, "absent": {}, **changes})


def test_a_map_is_black_at_its_low_end_and_white_at_its_high_end():
    drawn = np.asarray(draw_map(torch.tensor([[0.2, 0.4], [0.3, 0.9]]), 0.2, 0.4))
    assert drawn.tolist() == [[0, 255], [128, 255]]
    assert np.asarray(draw_map(torch.ones(2, 2), 1.0, 1.0)).max() == 0


def test_weights_have_each_their_own_scale_and_contributions_one():
    sheet = draw_map_sheet([rows()])
    assert sheet.size == (GAP + 5 * (SIDE + GAP), GAP + 2 * (SIDE + LINE + GAP))
    assert (cell(sheet, 0, 0)[SIDE // 2, SIDE // 2] == (255, 0, 0)).all()
    for column in range(1, 5):
        assert cell(sheet, 0, column).min() == 0 and cell(sheet, 0, column).max() >= 250
    peaks = [int(cell(sheet, 1, column).max()) for column in range(1, 5)]
    assert peaks[0] >= 235 and 5 <= peaks[1] <= 20 and peaks[2] >= 250 and peaks[3] >= 250


def test_pictures_of_one_sheet_share_the_scale_of_contributions():
    sheet = draw_map_sheet([rows(), rows(scale=0.5)])
    assert cell(sheet, 1, 3).max() >= 250 and 115 <= cell(sheet, 3, 3).max() <= 140


def test_where_there_is_no_map_a_word_says_why_and_groups_and_kinds_can_be_chosen():
    few = rows(weights={"cls": torch.rand(4, 4)}, contributions={"cls": torch.rand(4, 4)}, absent={"s": "why"})
    sheet = draw_map_sheet([few], ["cls", "s"], ["attention weights"])
    assert sheet.size == (GAP + 3 * (SIDE + GAP), GAP + SIDE + LINE + GAP)
    gray = cell(sheet, 0, 2)
    assert (gray[0, 0] == BOARD).all() and gray.min() < 60
    assert set(COLUMNS) >= {"queries", "cls", "s", "text"}


def test_a_wide_picture_keeps_its_proportions():
    wide = rows(picture=Image.new("RGB", (128, 64), "red"), weights={"s": torch.rand(4, 8)}, contributions={})
    sheet = draw_map_sheet([wide], ["s"], ["attention weights"])
    assert (cell(sheet, 0, 0)[4, SIDE // 2] == BOARD).all() and (cell(sheet, 0, 1)[4, SIDE // 2] == BOARD).all()
