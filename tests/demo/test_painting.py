"""What networks learn from: recipes as rows, painted as the composer draws them, and a store that travels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flexip_model.common.errors import FlexIPError
from flexip_model.demo.scenes import drawn
from flexip_model.demo.scenes.compose import Composer
from flexip_model.demo.scenes.lessons import Lessons
from flexip_model.demo.scenes.packed import pack, unpack
from flexip_model.demo.scenes.painter import Painter
from flexip_model.demo.scenes.store import SIDE, Store
from flexip_model.demo.scenes.words import Words, write_tokenizer
from flexip_model.demo.stages.vae import to_pixels

from ..support.demo_cast import cast_store

COLUMN = {name: place for place, name in enumerate(drawn.COLUMNS)}
VARIANTS = 2


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(cast_store(), VARIANTS)


@pytest.fixture(scope="module")
def painter(composer: Composer) -> Painter:
    return Painter.like(composer, torch.device("cpu"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Words:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(cast_store(), folder)
    return Words(folder)


def test_what_is_painted_is_what_the_composer_draws(composer: Composer, painter: Painter) -> None:
    rng = np.random.default_rng(0)
    recipes = [composer.recipe(rng, look, recolor=0.5) for look in composer.store.looks]
    recipes += [composer.moved(recipe, rng) for recipe in recipes]
    assert {r.background.split(":")[0] for r in recipes} == {"plain", "gradient", "scene"}
    assert {composer.look(r).style for r in recipes} == {"3d", "cartoon", "flat", "line"}
    assert {r.flip for r in recipes} == {True, False} and any(r.hue for r in recipes)
    assert any(abs(r.angle) > 8 for r in recipes) and any(r.stretch > 1.1 for r in recipes)
    pixels, alpha = painter(torch.tensor([drawn.row_of(composer, recipe) for recipe in recipes]))
    pictures, masks = zip(*(composer.picture_and_mask(recipe) for recipe in recipes), strict=True)
    away = (pixels - to_pixels(list(pictures))).abs().mean((1, 2, 3)) / 2 * 255
    assert away.max() <= 2, f"{away.max():.2f} of 255: {recipes[int(away.argmax())]}"
    seen = torch.from_numpy(np.stack([np.asarray(mask) for mask in masks])).float() / 255
    assert (alpha[:, 0] - seen).abs().mean((1, 2)).max() <= 2 / 255
    assert alpha.min() >= 0 and alpha.max() <= 1


def test_a_row_holds_what_the_recipe_says(composer: Composer) -> None:
    rng = np.random.default_rng(1)
    of_style = {look.style: look for look in composer.store.looks}
    plain = replace(
        composer.recipe(rng, of_style["3d"]), scale=0.5, stretch=1.0, x=0.5, y=0.5, angle=0.3, hue=0.25, flip=True
    )
    row = np.array(drawn.row_of(composer, replace(plain, background="plain:red")))
    assert row[COLUMN["row"]] == of_style["3d"].row and row[COLUMN["scene"]] == -1
    assert (row[COLUMN["top_red"] : COLUMN["top_blue"] + 1] == row[COLUMN["red"] : COLUMN["blue"] + 1]).all()
    assert (row[COLUMN["wide"] : COLUMN["y"] + 1] == 64).all()
    assert row[COLUMN["flip"]] == 1 and row[COLUMN["hue"]] == 0.25 and row[COLUMN["line"]] == 0
    assert row[COLUMN["angle"]] == 0  # too little to turn
    scene = replace(plain, row=of_style["line"].row, background="scene:snow", seed=VARIANTS * 3 + 1, angle=5.0)
    row = np.array(drawn.row_of(composer, scene))
    assert row[COLUMN["scene"]] == 3 * VARIANTS + 1 and row[COLUMN["mirrored"]] == 1
    assert row[COLUMN["line"]] == 1 and row[COLUMN["hue"]] == 0 and row[COLUMN["angle"]] == 5


def test_a_packed_store_comes_back(tmp_path: Path) -> None:
    store = cast_store()
    looks = [replace(look, frame=look.row == 0) for look in store.looks]
    store = Store(store.pixels, looks)
    pack(store, tmp_path / "store.zip")
    unpack(tmp_path / "store.zip", tmp_path / "store")
    back = Store.open(tmp_path / "store")
    assert back.looks == looks
    for look in looks:
        before, after = (np.asarray(of.pixels[look.row]).astype(int) for of in (store, back))
        shown = before[..., 3] > 0
        if look.frame:
            assert np.abs(before - after)[shown].mean() < 6
        else:
            assert (before[..., 3] == after[..., 3]).all() and (before[shown] == after[shown]).all()


def test_rows_are_counted_anew_where_a_part_of_a_store_travels(tmp_path: Path) -> None:
    part = cast_store().split(heldout=True)
    pack(part, tmp_path / "store.zip")
    unpack(tmp_path / "store.zip", tmp_path / "store")
    back = Store.open(tmp_path / "store")
    assert [look.row for look in back.looks] == list(range(len(part.looks)))
    assert np.array_equal(np.asarray(back.picture(back.looks[-1])), np.asarray(part.picture(part.looks[-1])))


@pytest.mark.parametrize("kind", [Composer, Lessons])
def test_targets_have_prompts_that_are_kept_whole_and_references(kind: type[Composer], words: Words) -> None:
    references = kind is Composer
    found = drawn.draw(kind(cast_store(), VARIANTS), words, 24, (0, 0), references)
    assert len(found) == 24 and found.ids.shape == (24, drawn.PROMPTS, drawn.LENGTH)
    assert len(found.same) == len(found.moved) == len(found.variant) == (24 if references else 0)
    end = words.tokenizer.eos_token_id
    assert (found.ids[..., -1] == end).all() and (found.ids[..., 0] == end - 1).all()
    said = words.tokenizer.batch_decode(found.ids.reshape(-1, drawn.LENGTH), skip_special_tokens=True)
    assert ("" in said) == (kind is Lessons)
    if references:
        assert (found.same[:, COLUMN["wide"] : COLUMN["line"] + 1] == found.targets[:, COLUMN["wide"] :]).all()
        assert (found.moved[:, COLUMN["row"]] == found.targets[:, COLUMN["row"]]).all()


def test_a_prompt_that_does_not_fit_is_told(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "LENGTH", 6)
    with pytest.raises(FlexIPError, match="more than 6 tokens"):
        drawn.draw(Composer(cast_store(), VARIANTS), words, 4, (0, 0), False)


def test_a_turned_look_keeps_its_colors_at_its_edges(painter: Painter) -> None:
    """Hidden colors of transparent pixels do not bleed in."""
    pixels = np.zeros((1, SIDE, SIDE, 4), np.uint8)
    pixels[..., :3] = (0, 255, 0)
    pixels[:, 40:100, 40:100] = np.asarray(Image.new("RGBA", (60, 60), (255, 0, 0, 255)))
    look = replace(cast_store().looks[0], row=0)
    composer = Composer(Store(pixels, [look]), VARIANTS)
    recipe = composer.recipe(np.random.default_rng(0), look, recolor=0)
    recipe = replace(recipe, background="plain:black", angle=20.0)
    painted, _ = Painter.like(composer, torch.device("cpu"))(torch.tensor([drawn.row_of(composer, recipe)]))
    assert (painted[0, 1].max() + 1) * 127.5 < 45
