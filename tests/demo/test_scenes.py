"""The demo model's data: prompts are true of their pictures, held-out concepts stay out, any text has tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from flexip_model.demo.evaluation.judge import to_bytes
from flexip_model.demo.evaluation.judges import BackgroundJudge, border
from flexip_model.demo.scenes.backgrounds import COLORS, SCENES, color_name, draw_scene, hue_matrix
from flexip_model.demo.scenes.compose import Composer
from flexip_model.demo.scenes.concepts import concept_of, draw_heldout, heldout_instances, select
from flexip_model.demo.scenes.store import Look, Store
from flexip_model.demo.scenes.words import Words, learn_merges, write_tokenizer

from ..support.demo_shapes import shapes


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(shapes(), scene_variants=3)


@pytest.mark.parametrize("color", COLORS)
def test_a_plain_background_has_the_colour_that_the_prompt_says(composer: Composer, color: str) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        recipe = replace(composer.recipe(rng), background=f"plain:{color}", scale=0.5, x=0.5, y=0.5)
        frame = border(to_bytes([composer.picture(recipe)]), 6)[0]
        assert np.abs(frame - COLORS[color]).max() <= 10
        assert color_name(frame) == color
        said = [composer.prompt(recipe, np.random.default_rng(i)) for i in range(20)]
        assert any(color in text for text in said)
        others = set(COLORS) - {color}
        name = composer.look(recipe).subject.name
        assert not any(o in text.replace(name, "").split() for text in said for o in others)


def test_scenes_differ_enough_to_be_told_apart_from_their_frames() -> None:
    judge = BackgroundJudge()
    drawn = [draw_scene(name, np.random.default_rng(1000 + i), 128) for name in SCENES for i in range(6)]
    right = judge.right(to_bytes(drawn), [f"scene:{name}" for name in SCENES for _ in range(6)])
    assert np.mean(right) > 0.95


def test_style_and_subject_words_come_from_the_look(composer: Composer) -> None:
    words = {"3d": "3d", "cartoon": "cartoon", "flat": "flat", "line": ("high contrast", "one-color")}
    rng = np.random.default_rng(3)
    for _ in range(40):
        recipe = composer.recipe(rng)
        look = composer.look(recipe)
        text = composer.prompt(recipe, rng)
        assert look.subject.name in text
        for style, marks in words.items():
            if style != look.style:
                assert not any(m in text for m in ([marks] if isinstance(marks, str) else marks))


def test_the_same_recipe_gives_the_same_picture_and_its_mask(composer: Composer) -> None:
    recipe = composer.recipe(np.random.default_rng(4))
    picture, mask = composer.picture_and_mask(recipe)
    assert np.array_equal(np.asarray(picture), np.asarray(composer.picture(recipe)))
    background = np.asarray(composer.background(recipe.background, recipe.seed), int)
    changed = np.abs(np.asarray(picture, int) - background).max(-1) > 0
    assert not changed[np.asarray(mask) == 0].any() and changed.any()


def test_references_keep_the_subject_style_and_colours(composer: Composer) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        recipe = composer.recipe(rng, recolor=1.0)
        look = composer.look(recipe)
        same, other = composer.same(recipe, rng), composer.variant(recipe, rng)
        assert replace(same, background=recipe.background) == recipe
        assert other.flip == recipe.flip and other.hue == recipe.hue
        assert same.background in (recipe.background, "plain:white")
        seen = composer.look(other)
        assert seen.subject == look.subject
        assert seen.style == look.style or not recipe.hue  # other styles have other colors


def test_turning_hues_keeps_grays_and_comes_round() -> None:
    assert np.allclose(hue_matrix(0.3) @ [0.5, 0.5, 0.5], 0.5, atol=1e-6)
    assert np.allclose(hue_matrix(0.25) @ hue_matrix(0.75), np.eye(3), atol=1e-6)
    assert np.allclose(hue_matrix(1 / 3) @ [1, 0, 0], [0, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("names", "concept"),
    [
        (("cat", "cat face", "black cat"), "cat"),
        (("rooster", "chicken", "hatching chick"), "chicken"),
        (("red apple", "green apple"), "apple"),
        (("cherries",), "cherry"),
        (("oncoming bus", "bus", "trolleybus"), "bus"),
        (("nest with eggs", "empty nest"), "nest"),
        (("octopus",), "octopus"),
    ],
)
def test_variants_of_a_subject_are_one_concept(names: tuple[str, ...], concept: str) -> None:
    assert {concept_of(n) for n in names} == {concept}


def test_flags_people_and_smileys_are_left_out() -> None:
    entries = {
        "🐱": {"name": "cat face", "group": "Animals & Nature"},
        "🇫🇷": {"name": "flag France", "group": "Flags"},
        "👩": {"name": "woman", "group": "People & Body"},
        "😀": {"name": "grinning face", "group": "Smileys & Emotion"},
        "🤖": {"name": "robot", "group": "Smileys & Emotion"},
        "🕐": {"name": "one o’clock", "group": "Travel & Places"},
    }
    assert [s.name for s in select(entries)] == ["cat face", "robot"]


def test_no_held_out_instance_reaches_the_training_part() -> None:
    heldout = {concept for artist, concept in heldout_instances() if artist == "fluent"}
    store = shapes()
    names = [*sorted(heldout)[:3], "certainly not held out", "nor this"]
    looks = [
        Look(x.row, replace(x.subject, concept=names[int(x.subject.code[1])]), x.style, x.frame) for x in store.looks
    ]
    whole = Store(store.pixels, looks)
    training, test = whole.split(False), whole.split(True)
    assert {s.concept for s in training.subjects} == set(names[3:])
    assert {s.concept for s in test.subjects} == set(names[:3])
    rng = np.random.default_rng(0)
    composer = Composer(training)
    for _ in range(50):
        recipe = composer.recipe(rng)
        for drawn in (recipe, composer.variant(recipe, rng), composer.same(recipe, rng)):
            assert composer.look(drawn).subject.concept not in heldout


def test_the_held_out_list_is_drawn_by_hash_and_stays_when_concepts_are_added() -> None:
    concepts = [f"c{i}" for i in range(100)]
    first = set(draw_heldout(concepts))
    assert len(first) == 15
    assert len(first & set(draw_heldout([*concepts, "new"]))) >= 14


def test_any_text_has_tokens_and_reads_back(tmp_path) -> None:
    write_tokenizer(shapes(), tmp_path, limit=80)
    words = Words(tmp_path)
    ids = words(["a 3d render of a red thing on a plain blue background", "", "naïve 猫 🐱 42!", "red " * 200])
    assert ids.shape == (4, 77)
    last = len(words.tokenizer) - 1
    assert words.tokenizer.eos_token_id == last and words.tokenizer.bos_token_id == last - 1
    assert (ids[:, 0] == last - 1).all() and (ids[:, -1] == last).all()
    assert (ids[1, 1:] == last).all()
    assert words.tokenizer.decode(ids[0], skip_special_tokens=True) == (
        "a 3 d render of a red thing on a plain blue background"
    )
    assert words.tokenizer.decode(ids[2], skip_special_tokens=True).replace(" ", "") == "naïve猫🐱42!"


def test_the_same_words_teach_the_same_merges_and_a_frequent_word_becomes_one_token() -> None:
    words = Counter({"meadow": 20, "mellow": 3, "shadow": 3, "yellow": 3, "low": 1, "naïve": 50, "x2": 50})
    merges = learn_merges(words, 40)
    assert all(learn_merges(Counter(dict(reversed(words.items()))), 40) == merges for _ in range(5))
    assert "meadow</w>" in {first + second for first, second in merges}
    assert not {letter for pair in merges for letter in "".join(pair).removesuffix("</w>")} & {"ï", "2"}
