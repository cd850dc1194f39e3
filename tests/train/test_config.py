"""A run's config: what ships, what can be set, and a sentence for every mistake."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.images.preprocess import CROPS
from flexip_model.train.configs.options import TrainConfig, to_dict
from flexip_model.train.configs.read import NAMED, SECTIONS, from_dict, load_config
from flexip_model.train.configs.sections import References


@pytest.mark.parametrize("name", NAMED)
def test_configs_that_ship_are_whole_and_survive_json(name: str) -> None:
    found = load_config(name)
    assert from_dict(json.loads(json.dumps(to_dict(found)))) == found


def test_the_papers_numbers_are_the_default() -> None:
    paper = load_config("paper")
    assert (paper.size, paper.batch, paper.lr, paper.weight_decay) == (512, 16, 1e-4, 0.01)
    assert [(s.steps, s.quality) for s in paper.stages] == [(100_000, "any"), (40_000, "high")]
    assert (paper.dropout.image, paper.dropout.text, paper.dropout.both) == (0.05, 0.05, 0.05)
    assert (paper.references.flip_image, paper.references.flip_variant) == (0, 0)
    assert {load_config(name).references.crop for name in ("paper", "one_card")} == {"pad"}
    assert (paper.dial.steps, paper.dial.guidance) == (50, 7.5) and (paper.title, paper.license) == ("", "")
    assert paper.min_snr is None and paper.image_share == 0.5 and paper.gamma_spread == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch: 7", "split"),
        ("lr: fast", "lr is 'fast'; it should be a valid number"),
        ("lr: 0", "lr is 0; it should be greater than 0"),
        ("warmup: true", "warmup is True; it should be a valid integer"),
        ("size: 60", "size is 60; it should be a multiple of 8"),
        ("precision: fp16", "precision is 'fp16'; it should be 'bf16' or 'fp32'"),
        ("learning_rate: 1", "unknown key learning_rate; known are base, clip"),
        ("stages: [{stops: 3}]", "unknown key stages.0.stops; known are steps, quality"),
        ("stages: [{quality: high}]", "stages.0.steps is missing"),
        ("stages: [3]", "stages.0 is 3; it should be `key: value` lines"),
        ("betas: 0.9", "betas is 0.9; it should be a list"),
        ("- a", "key: value"),
        ("a: [", "not YAML"),
        ("extends: nowhere.yaml", "no config"),
        ("stages: []", "no stage"),
        ("dropout: {text: 0.95}", "sum of the dropouts"),
        ("references: {white: 2}", "references.white is 2; it should be less than or equal to 1"),
        ("references: {crop: middle}", "references.crop is 'middle'; it should be 'center', 'pad' or 'subject'"),
        ("adapter: {depht: 3}", "no field depht"),
        ("adapter: {alpha: high}", "adapter.alpha is 'high'; it should be a valid number"),
        ("preview_steps: 0", "preview_steps is 0; it should be greater than or equal to 1"),
        ("min_snr: 0", "min_snr is 0; it should be greater than 0"),
        ("weight_decay: -0.1", "weight_decay is -0.1; it should be greater than or equal to 0"),
        ("lr: .inf", "lr is inf; it should be a finite number"),
        ("guidance: .nan", "guidance is nan; it should be a finite number"),
        ("betas: [0.9, 1.5]", "betas.1 is 1.5; it should be less than 1"),
        ("warmup: 401", "warmup is 401, and all stages have 400 steps"),
        ("schedule: constant\ndecay_from: 0.5", "decay_from is 0.5, but the schedule is constant"),
        ("dropout: {image: 0.5, text: 0, both: 0.5}", "nothing would be learned"),
        ("data: [a, a]", "data names .*a twice"),
        ("ema: 1", "ema is 1; it should be less than 1"),
        ("seed: 99999999999999999999", "seed is 99999999999999999999; it should be less than"),
        ("adapter: {kind: ip-adapter}", "of the kind ip-adapter; a run trains"),
        ("title: 2026-01-01", "title is 2026-01-01; it should be a valid string"),
        ("base:", "base is empty; it should be a valid string"),
        ("1: 2", "unknown key 1; known are"),
        ("base: ''", "base is ''; String should have at least 1 character"),
    ],
)
def test_a_wrong_config_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text if text.startswith(("extends", "-", "a:")) else f"extends: demo\n{text}\n")
    with pytest.raises(FlexIPError, match=words):
        load_config(path)


def _leaves(kind: type, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every value of a config by its dotted name, with its type."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if field.name in SECTIONS and field.name != "stages":
            yield from _leaves(SECTIONS[field.name], f"{field.name}.")
        else:
            yield prefix + field.name, hints[field.name]


NUMBERS = [n for n, hint in _leaves(TrainConfig) if n == "stages" or re.search(r"int'|float", str(hint))]
UNBOUNDED = ("clip_norm", "min_snr")
"""Numbers that may be as large as a float: they then take nothing away."""


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 1e30, 10**30, "many", True, [1]])
def test_no_number_of_a_config_takes_what_makes_no_sense(name: str, value: object) -> None:
    if name in UNBOUNDED and value in (1e30, 10**30):
        return
    wrong = [value, value] if name == "betas" else value
    with pytest.raises(FlexIPError, match=name.rpartition(".")[2]):
        load_config("demo", {name: [{"steps": wrong}] if name == "stages" else wrong})


def test_numbers_of_every_section_are_looked_at() -> None:
    assert {"lr", "betas", "stages", "guidance", "bad_share", "dropout.text", "references.white"} <= set(NUMBERS)
    assert get_args(get_type_hints(References)["crop"]) == CROPS


def test_all_mistakes_of_a_config_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("extends: demo\nlr: 0\nbatsh: 3\nwarmup: -1\n")
    with pytest.raises(FlexIPError) as found:
        load_config(tmp_path / "my.yaml")
    lines = str(found.value).splitlines()
    assert lines[0] == "3 mistakes:" and "unknown key batsh" in lines[1] and "lr is 0" in lines[2] + lines[3]
    with pytest.raises(FlexIPError, match=r"2 mistakes:\n.*split.*\n.*warmup is 500"):
        load_config("demo", {"batch": 7, "warmup": 500})


def test_a_value_set_on_the_command_line_is_read_as_in_the_file_or_named(capsys) -> None:
    found = load_config("demo", {"adapter.alpha": "9e-1", "lr": "1e-4", "stages": {"steps": 5}, "warmup": 0})
    assert (found.adapter["alpha"], found.lr, [stage.steps for stage in found.stages]) == (0.9, 1e-4, [5])
    with pytest.raises(FlexIPError, match=r"stages.0.steps cannot be set: stages is \[.*set stages as a whole"):
        load_config("demo", {"stages": [{"steps": 5}], "stages.0.steps": 50})
    assert main(["train", "demo", "--set", "title=a: b: c"]) == 2
    assert "--set title=a: b: c: the value is not YAML" in capsys.readouterr().err


def test_paths_are_relative_to_the_config_and_a_part_of_a_section_can_be_changed(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("extends: demo\ndata: packed\noutput: here\nreferences: {white: 0.25}\n")
    found = load_config(tmp_path / "my.yaml", {"dropout.text": 0.1})
    assert found.data == (str(tmp_path / "packed"),) and found.output == str(tmp_path / "here")
    assert (found.references.white, found.references.crop, found.dropout.text) == (0.25, "center", 0.1)
    assert Path(found.base).is_dir() and Path(found.clip).is_file()


def test_paths_on_the_command_line_are_relative_to_the_working_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "my.yaml").write_text("extends: demo\noutput: here\n")
    monkeypatch.chdir(tmp_path)
    found = load_config("configs/my.yaml", {"data": ["packed", "s3://bucket/data"], "start": "a.safetensors"})
    assert found.output == str(tmp_path / "configs" / "here") and found.start == str(tmp_path / "a.safetensors")
    assert found.data == (str(tmp_path / "packed"), "s3://bucket/data")
