"""Stages that train some parts of the adapter alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.files.adapter_file import load_adapter_file
from flexip_model.train.configs.options import to_dict
from flexip_model.train.configs.parts import PARTS, part_of
from flexip_model.train.trainer import Trainer

from ..support.paths import SHIPPED
from ..support.train_rig import config, tensors, train

ALL_FROM_NOTHING = ("resampler_text", "project_text", "personalization_kv")


def changed(folder: Path, output: Path, step: int, **changes) -> set[str]:
    """The parts whose weights, or averages, a run has moved up to a step."""
    start = dict(Trainer(config(folder, output / "other", **changes)).adapter.named_parameters())
    found = tensors(output, step)
    return {
        part_of(name)
        for name, value in start.items()
        for kind in ("weights", "ema")
        if not torch.equal(found[f"{kind}.{name}"], value.detach())
    }


def test_the_parts_are_all_of_the_adapter() -> None:
    _, weights = load_adapter_file(SHIPPED / "flexip_demo.safetensors")
    assert {part_of(name) for name in weights} | {"gate"} == set(PARTS)


def test_a_stage_moves_its_parts_alone_and_the_next_one_all(data: Path, tmp_path: Path) -> None:
    stages = [{"steps": 2, "parts": list(ALL_FROM_NOTHING)}, {"steps": 2}]
    changes = {"weight_decay": 0.1, "save_every": 2, "keep": 9, "adapter": {**config(data, tmp_path).adapter}}
    train(data, tmp_path / "whole", stages=stages, **changes)
    assert changed(data, tmp_path / "whole", 2, **changes) == set(ALL_FROM_NOTHING)
    assert changed(data, tmp_path / "whole", 4, **changes) == set(PARTS) - {"gate"}
    train(data, tmp_path / "halves", stages=[{"steps": 1, "parts": list(ALL_FROM_NOTHING)}], **changes)
    train(data, tmp_path / "halves", stages=stages, **changes)
    whole, halves = (tensors(tmp_path / name, 4) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys() and all(torch.equal(value, halves[name]) for name, value in whole.items())


def test_other_parts_for_what_is_over_and_parts_that_are_not_there_are_refused(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", stages=[{"steps": 2, "parts": "queries"}])
    trainer = Trainer(config(data, tmp_path / "run", stages=[{"steps": 2, "parts": "project_cls"}, {"steps": 2}]))
    with pytest.raises(
        FlexIPError, match=r"by the stages 2 \(any, queries\), and the config now says 2 \(any, project"
    ):
        trainer.run()
    with pytest.raises(
        FlexIPError, match="stage 1 trains the part gate, which has no weights in this adapter; set ada"
    ):
        Trainer(config(data, tmp_path / "new", stages=[{"steps": 2, "parts": ["gate", "queries"]}]))
    with pytest.raises(FlexIPError, match=r"stages.0.parts.1 is 'query'; it should be 'queries', "):
        config(data, tmp_path / "new", stages=[{"steps": 2, "parts": ["gate", "query"]}])


def test_a_dry_run_says_what_a_stage_trains(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    stages = [{"steps": 2, "parts": ["queries", "project_cls"]}]
    path.write_text(json.dumps(to_dict(config(data, tmp_path / "run", stages=stages)), default=list))
    assert main(["train", "--dry-run", str(path)]) == 0
    assert "stage 1 trains queries, project_cls: 0.0 M of the weights" in capsys.readouterr().out
