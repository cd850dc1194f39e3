"""The base alone: what it learns from, its text encoder, its stage, and the sources that it shares with adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flexip_model.common.errors import FlexIPError
from flexip_model.demo.base import drawing, names
from flexip_model.demo.base.lessons import Lessons
from flexip_model.demo.scenes.concepts import ARTISTS, Subject, concept_of, heldout_instances
from flexip_model.demo.scenes.store import Look, Store, svg_picture, write_heldout
from flexip_model.demo.scenes.vocabulary import DRAWN_BY, FLUENT_HELD_OUT, WORDS, rename, word_of
from flexip_model.demo.scenes.words import Words, write_tokenizer
from flexip_model.demo.stages import cache, vae
from flexip_model.demo.stages.base import Base
from flexip_model.demo.stages.recipe import Plan
from flexip_model.demo.workshop import Workshop

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


def _plan(**changes) -> Plan:
    return Plan(**{"steps": 2, "batch": 4, "warmup": 1, "log_every": 1, **changes})


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


def test_lessons_say_the_word_and_only_words_are_said(lessons: Lessons) -> None:
    rng = np.random.default_rng(0)
    assert lessons.words == sorted(_DRAWN, key=list(WORDS).index)
    styles: dict[tuple[str, str], int] = {}
    empty = other = 0
    for _ in range(600):
        recipe = lessons.recipe(rng)
        look, text = lessons.look(recipe), lessons.lesson(recipe, rng)
        word = word_of(look)
        if word is None:
            other += 1
            assert text == ""
            continue
        assert recipe.hue == 0 and recipe.stretch == 1 and not recipe.flip
        empty += text == ""
        assert text == "" or word in text
        assert "face" not in text
        styles[word, look.style] = styles.get((word, look.style), 0) + 1
    assert 0.02 < other / 600 < 0.12 and 0.01 < empty / 600 < 0.1
    assert ("tomato", "3d") not in styles and styles["dog", "3d"] > styles["dog", "flat"]


def test_renaming_leaves_other_looks_alone() -> None:
    store = _store()
    changed = {a.subject.name: b.subject.name for a, b in zip(store.looks, rename(store).looks, strict=True)}
    assert changed["dog face"] == "dog" and changed["orange thing"] == "orange thing"
    frame = replace(store.looks[0], frame=True)
    assert word_of(store.looks[0]) == "dog" and word_of(frame) is None


def test_the_text_encoder_learns_names_apart_and_is_frozen(tokens: Words, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stage = names.run_names(_store(), tokens, Plan(steps=25, batch=24, warmup=2, log_every=5, lr=2e-3), tmp_path)
    assert stage.history[-1]["name"] < 0.7 * stage.history[0]["name"]
    text = names.load_text(_store(), tokens, tmp_path)
    assert not any(p.requires_grad for p in text.parameters())
    assert text(tokens(["a dog"])).last_hidden_state.shape == (1, 77, 128)


def _drawing(lessons: Lessons, tokens: Words, plan: Plan, folder: Path) -> drawing.Drawing:
    torch.manual_seed(0)
    model = vae.build().eval()
    found = cache.Cache(*cache.make_part(lessons, model, None, seed=(0, 0), count=24, batch=8))
    assert set(found.tensors) == {"latents", "mask"}
    return drawing.Drawing(
        Base(len(tokens.tokenizer)), model, lessons=lessons, cache=found, words=tokens, plan=plan, folder=folder
    )


def test_the_base_goes_on_to_the_same_bits_and_leaves_its_text_encoder(lessons, tokens, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(drawing, "LOOK_EVERY", 2)
    monkeypatch.setattr(drawing, "LOOK_STEPS", 2)
    monkeypatch.setattr(drawing, "LOOKS", drawing.LOOKS[:2])
    plan = _plan(steps=4, schedule="constant")
    whole = drawing.run_base(_drawing(lessons, tokens, plan, tmp_path / "whole"))
    drawing.run_base(_drawing(lessons, tokens, replace(plan, steps=2), tmp_path / "half"))
    half = drawing.run_base(_drawing(lessons, tokens, plan, tmp_path / "half"))
    assert half.step == 4 and half.history == whole.history
    for a, b in zip(whole.base.parameters(), half.base.parameters(), strict=True):
        assert torch.equal(a, b)
    begun = _drawing(lessons, tokens, plan, tmp_path / "new").base
    assert all(torch.equal(a, b) for a, b in zip(begun.text.parameters(), half.base.text.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(begun.unet.parameters(), half.base.unet.parameters(), strict=True))
    assert sorted(p.name for p in (tmp_path / "whole" / "looks").iterdir()) == ["step-0000002.png", "step-0000004.png"]
    loaded = drawing.load_base(tokens, begun.text, tmp_path / "whole")
    assert torch.equal(loaded.unet.conv_out.weight, half.base.unet.conv_out.weight)


def test_the_sheets_ask_for_words_of_the_list_and_for_unseen_renderings() -> None:
    said = [next(w for w in WORDS if f" {w} " in prompt) for prompt in drawing.LOOKS]
    assert len(said) == 16 and all(word in FLUENT_HELD_OUT for word in said[-4:])


def test_a_folder_without_a_vae_and_a_missing_stage_are_told(tmp_path: Path) -> None:
    with pytest.raises(FlexIPError, match="holds no VAE"):
        Workshop(tmp_path, tmp_path, vae=tmp_path)._vae()
    with pytest.raises(FlexIPError, match="run the stage `lessons` first"):
        Workshop(tmp_path, tmp_path).base()


def test_the_shipped_vae_is_read_as_it_is() -> None:
    model = vae.read(SHIPPED / "vae")
    assert next(model.parameters()).dtype == torch.float32 and not model.training
