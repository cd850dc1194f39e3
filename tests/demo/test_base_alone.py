"""The base alone: what it learns from, its text encoder, and the sources that it shares with adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch

from flexip_model.common.errors import FlexIPError
from flexip_model.demo.making import legs, names, run
from flexip_model.demo.making.stepper import Pace
from flexip_model.demo.scenes.concepts import ARTISTS, Subject, concept_of, heldout_instances
from flexip_model.demo.scenes.lessons import Lessons
from flexip_model.demo.scenes.store import Look, Store, svg_picture, write_heldout
from flexip_model.demo.scenes.vocabulary import DRAWN_BY, FLUENT_HELD_OUT, WORDS, rename, word_of
from flexip_model.demo.scenes.words import Words, write_tokenizer
from flexip_model.demo.stages import vae

from ..support.demo_shapes import shapes
from ..support.paths import ROOT, SHIPPED

_DRAWN = ("dog", "fox", "tomato")


def _store() -> Store:
    """Drawn shapes as three words by three artists (the tomato not by Fluent) and as two things without a word."""
    whole = shapes()
    looks: list[Look] = []
    for number, word in enumerate(_DRAWN):
        subject = Subject(WORDS[word], f"{word} face", word)
        for style, artist in DRAWN_BY.items():
            if (word, artist) != ("tomato", "fluent"):
                drawn = subject if artist == "fluent" else subject.by(artist)
                looks.append(Look(3 * number, drawn, style, False))
    looks += [x for x in whole.looks if x.row >= 9 and x.style == "3d"]
    pixels = np.stack([whole.pixels[x.row] for x in looks])
    return Store(pixels, [replace(x, row=i) for i, x in enumerate(looks)])


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(_store(), scene_variants=2)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Words:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(_store(), folder, limit=400)
    return Words(folder)


def test_the_list_holds_out_a_hundred_instances_and_no_concept_of_two_artists() -> None:
    listed = json.loads((ROOT / "flexip_model/demo/scenes/heldout.json").read_text(encoding="utf-8"))
    assert set(listed) == set(ARTISTS) and 95 <= len(heldout_instances()) <= 110
    assert len(listed["fluent"]) == 70  # version 4's
    concepts = [set(listed[artist]) for artist in ARTISTS]
    assert not any(a & b for i, a in enumerate(concepts) for b in concepts[:i])
    for artist in ARTISTS:
        assert all(concept_of(name) == c for c, known in listed[artist].items() for name in known)


def test_words_are_different_things_and_more_than_fifty_are_of_held_out_drawings() -> None:
    assert 100 <= len(WORDS) <= 200 and len(set(WORDS.values())) == len(WORDS)
    assert len(FLUENT_HELD_OUT) >= 51


def test_heldout_instances_are_drawn_per_artist_and_no_concept_by_two(tmp_path: Path) -> None:
    subjects = [Subject(f"{i:x}", f"thing{i}", f"thing{i}") for i in range(40)]
    looks = [Look(0, s if a == "fluent" else s.by(a), style, False) for s in subjects for style, a in DRAWN_BY.items()]
    write_heldout(Store(shapes().pixels, looks), tmp_path / "list.json")
    listed = json.loads((tmp_path / "list.json").read_text(encoding="utf-8"))
    assert {a: len(v) for a, v in listed.items()} == {"fluent": 6, "noto": 1, "twemoji": 1}
    assert len({c for v in listed.values() for c in v}) == 8


def test_an_artists_drawing_is_a_subject_of_its_own() -> None:
    store = _store()
    assert store.styles_of(WORDS["dog"]) == ["3d"] and store.styles_of(f"noto:{WORDS['dog']}") == ["cartoon"]
    assert {s.artist for s in store.by("noto").subjects} == {"noto"}


def test_a_drawing_keeps_its_proportions_whatever_its_side() -> None:
    for side in (32, 36, 128):
        body = f'<rect width="{side}" height="{side / 2}" fill="#ff0000"/>'
        alpha = np.asarray(svg_picture(body, side).getchannel("A"), float)
        assert alpha[:70].min() == 255 and alpha[74:].max() == 0


def test_lessons_say_the_word_and_only_of_pictures_as_they_are(lessons: Lessons) -> None:
    rng = np.random.default_rng(0)
    assert lessons.words == ["dog", "fox", "orange thing", "purple thing", "tomato"]
    styles: dict[tuple[str, str], int] = {}
    empty = changed = 0
    for _ in range(600):
        recipe = lessons.recipe(rng)
        look, text = lessons.look(recipe), lessons.lesson(recipe, rng)
        if look.frame or recipe.hue or recipe.flip or recipe.stretch != 1:
            changed += 1
            assert text == ""
            continue
        empty += text == ""
        assert text == "" or look.subject.name in text
        assert "face" not in text
        styles[look.subject.name, look.style] = styles.get((look.subject.name, look.style), 0) + 1
    assert 0.12 < changed / 600 < 0.3 and 0.01 < empty / 600 < 0.1
    assert ("tomato", "3d") not in styles and styles["dog", "3d"] > styles["dog", "flat"]


def test_renaming_leaves_other_looks_alone() -> None:
    store = _store()
    changed = {a.subject.name: b.subject.name for a, b in zip(store.looks, rename(store).looks, strict=True)}
    assert changed["dog face"] == "dog" and changed["orange thing"] == "orange thing"
    frame = replace(store.looks[0], frame=True)
    assert word_of(store.looks[0]) == "dog" and word_of(frame) is None


def test_the_text_encoder_learns_names_apart_and_is_frozen(tokens: Words, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pace = Pace(inf, 16, lr=4e-3, steps=14, warmup=2, ema=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "LOG_EVERY", 0.0)
        text = names.train_names(_store(), tokens, pace, tmp_path)
    history = json.loads((tmp_path / "names" / run.RECORD).read_text())["history"]
    assert history[-1]["name"] < 0.7 * history[0]["name"]
    assert not any(p.requires_grad for p in text.parameters())
    assert text(tokens(["a dog"])).last_hidden_state.shape == (1, 77, 128)


def test_the_sheets_ask_for_words_of_the_list_and_for_unseen_renderings() -> None:
    said = [next(w for w in WORDS if f" {w} " in prompt) for prompt in legs.LOOKS]
    assert len(said) == 16 and all(word in FLUENT_HELD_OUT for word in said[-4:])


def test_a_folder_without_a_vae_is_told(tmp_path: Path) -> None:
    with pytest.raises(FlexIPError, match="holds no VAE"):
        vae.read(tmp_path)


def test_the_shipped_vae_is_read_as_it_is() -> None:
    model = vae.read(SHIPPED / "vae")
    assert next(model.parameters()).dtype == torch.float32 and not model.training
