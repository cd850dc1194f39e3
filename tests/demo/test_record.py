"""The record that ships: it is that of the files beside it, and measuring them again finds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexip_model.__main__ import main
from flexip_model.demo.evaluation import record, rows
from flexip_model.demo.evaluation.evaluate import NOISES
from flexip_model.demo.evaluation.figures.card import BEGIN, END, tables
from flexip_model.demo.evaluation.figures.summary import summary
from flexip_model.demo.evaluation.subjects import CONCEPTS
from flexip_model.demo.stages.export import ADAPTER_FILE
from flexip_model.demo.stages.sampling import GUIDANCE

from ..support.paths import ROOT
from ..support.paths import SHIPPED as DEMO


def _shipped_record() -> dict[str, Any]:
    return json.loads((DEMO / record.RECORD).read_text(encoding="utf-8"))


def test_the_record_is_that_of_the_files_that_ship_and_its_figures_are_those_of_its_rows() -> None:
    found = _shipped_record()
    assert found["weights"] == rows.hashes(DEMO)
    assert found["protocol"] == json.loads(json.dumps(rows.PROTOCOL))
    assert 20 <= len(found["rows"]) == found["figures"]["subjects"] <= CONCEPTS
    assert json.loads(json.dumps(summary(found["rows"]))) == found["figures"]
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    assert BEGIN + tables(found) + END in card


def test_the_record_the_workflows_and_the_dials_measurement_have_one_guidance() -> None:
    graphs = [
        json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("flexip_basic", "flexip_gamma_sweep")
    ]
    used = [node["inputs"]["cfg"] for graph in graphs for node in graph.values() if node["class_type"] == "KSampler"]
    values = yaml.safe_load((ROOT / "flexip_model/train/configs/demo.yaml").read_text(encoding="utf-8"))
    assert used == [GUIDANCE, GUIDANCE] and values["guidance"] == GUIDANCE == rows.PROTOCOL["guidance"]


def test_check_measures_the_files_that_ship_and_finds_what_is_on_record(tmp_path: Path, capsys) -> None:
    stale = tmp_path / "evaluation-check" / "shipped.json"  # what an earlier check left is not taken for a measurement
    stale.parent.mkdir(parents=True)
    stale.write_text(json.dumps({"digest": rows.digest_of(DEMO, DEMO / ADAPTER_FILE, NOISES), "rows": [{}]}))
    assert main(["demo-model", "check", "--work", str(tmp_path), "--subjects", "1"]) == 0
    assert "As on record" in capsys.readouterr().out
    measured = json.loads(stale.read_text())["rows"][0]
    assert measured["code"] == _shipped_record()["rows"][0]["code"]


def test_check_refuses_weights_that_are_not_the_measured_ones(tmp_path: Path, capsys) -> None:
    (tmp_path / record.RECORD).write_text(json.dumps(_shipped_record()))
    (tmp_path / ADAPTER_FILE).write_bytes(b"other")
    assert main(["demo-model", "check", "--work", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "is not what was measured" in capsys.readouterr().err


def test_a_mean_may_differ_by_one_picture_that_is_named_otherwise() -> None:
    assert record.allowed("first (own) at γ = 0", 6) == pytest.approx(0.05 + 1 / 36)
    assert record.allowed("kept (other) at γ = 1", 6) == pytest.approx(0.05 + 1 / 12)
    assert record.allowed("style_flat (own) at γ = 1", 6) == pytest.approx(0.05 + 1 / 6)
