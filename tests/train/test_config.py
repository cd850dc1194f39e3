"""A run's config: what ships, what can be set, and a sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.train.configs.options import to_dict
from flexip_model.train.configs.read import NAMED, from_dict, load_config


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
    ],
)
def test_a_wrong_config_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text if text.startswith(("extends", "-", "a:")) else f"extends: demo\n{text}\n")
    with pytest.raises(FlexIPError, match=words):
        load_config(path)


def test_a_value_set_on_the_command_line_is_read_as_in_the_file_or_named(capsys) -> None:
    found = load_config("demo", {"adapter.alpha": "9e-1", "lr": "1e-4", "stages": {"steps": 5}})
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
