"""Adapters measured beside one base, the record that comes of it, and the card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flexip_model.common.errors import FlexIPError
from flexip_model.demo.evaluation import beside, evaluate, evaluate_base, judges, record, rows, shipped, style
from flexip_model.demo.evaluation.figures.card import BEGIN, END, Goal, tables, told_runs, write_card
from flexip_model.demo.evaluation.figures.compare import compare, per_subject, seed_groups
from flexip_model.demo.evaluation.figures.curves import draw_curves
from flexip_model.demo.evaluation.figures.summary import differences, summary
from flexip_model.demo.evaluation.judge import fetch
from flexip_model.demo.evaluation.shipped import Shipped
from flexip_model.demo.scenes.store import Store
from flexip_model.demo.stages.export import ADAPTER_FILE
from flexip_model.files.adapter_file import save_adapter
from flexip_model.method.adapters import create_adapter

from ..support.demo_cast import HELD, KNOWN, cast_store, write_store
from ..support.paths import SHIPPED as DEMO

CPU = torch.device("cpu")
COUNT = 2


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """Pictures of two steps, one noise each, few examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "STEPS", 2)
        patch.setattr(record, "NOISES", 1)
        patch.setattr(rows, "NOISES", 1)
        patch.setattr(evaluate_base, "PROMPTS", {"3d": 1, "cartoon": 1, "flat": 1})
        patch.setattr(style, "PER_STYLE", 6)
        patch.setattr(style, "TESTED", 4)
        patch.setattr(evaluate_base, "JUDGED", 4)
        patch.setattr(evaluate_base, "BACKGROUNDS", ("plain:black", "scene:meadow"))
        yield


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped FlexIP adapter, and an untrained IP-Adapter and IP-Adapter-Plus."""
    folder = tmp_path_factory.mktemp("adapters")
    model = Shipped(DEMO, CPU)
    (folder / "flexip-seed1.safetensors").write_bytes((DEMO / ADAPTER_FILE).read_bytes())
    for kind, queries in (("ip-adapter", 4), ("ip-adapter-plus", 16)):
        torch.manual_seed(0)
        config = replace(model.adapter.config, kind=kind, queries=queries, dial=())
        adapter = create_adapter(config)
        adapter.copy_text_attention(model.base.unet)
        training = {"trained": False, "before": [{"steps": 7000, "batch": 4}], "adapter": {"steps": 3, "batch": 2}}
        save_adapter(folder / f"{kind}-seed1.safetensors", config, adapter.state_dict(), training=training)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "store"
    write_store(cast_store(), folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def measured(tiny, adapters: Path, store: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rows")
    rows.evaluate_adapters(DEMO, store, weights, out, adapters=adapters, subjects=COUNT, noises=1, device=CPU)
    return out


def _read(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / f"{name}.json").read_text(encoding="utf-8"))


def test_every_adapter_has_rows_of_the_same_subjects_and_noises(measured: Path) -> None:
    names = ["shipped", "flexip-seed1", "ip-adapter-seed1", "ip-adapter-plus-seed1"]
    for name in names:
        found = _read(measured, name)
        assert [row["subject"] for row in found["rows"]] == list(HELD[:COUNT]) and found["on"] == "cpu"
        for row in found["rows"]:
            assert row["other_word"] in KNOWN
            assert len(row["own"]) == len(row["other"]) == len(evaluate.KNOB)
            assert set(row["own"][0]) == set(judges.OWN) and set(row["other"][0]) == set(judges.OTHER)
            assert len(row["fine"]["steps"]) == 20 and len(row["fine"]["skips"]) == 19
            assert len(row["grid"]["steps"]) == 5 and len(row["fine"]["fidelity"]) == 21
        assert (measured / "sheets" / f"{name}-00.jpg").exists()
    assert _read(measured, "shipped")["rows"] == _read(measured, "flexip-seed1")["rows"]
    alone = _read(measured, "baselines")["rows"]
    for place, row in enumerate(_read(measured, "ip-adapter-seed1")["rows"]):
        for kind in ("own", "other"):  # at scale 0 an IP-Adapter is the base alone
            assert row[kind][0] == pytest.approx(alone[place]["no_adapter"][kind], abs=2e-3)
    different = [_read(measured, name)["rows"][0]["fine"]["steps"] for name in names[1:]]
    assert different[0] != different[1] != different[2] != different[0]
    assert _read(measured, "ip-adapter-plus-seed1")["kind"] == "ip-adapter-plus"


def test_copies_keep_the_subject_and_true_pictures_follow_the_prompt(measured: Path) -> None:
    for row in _read(measured, "baselines")["rows"]:
        assert row["copy"]["own"]["first"] == row["copy"]["other"]["kept"] == 1
        assert row["copy"]["other"]["asked"] == 0 < row["through_vae"]["other"]["asked"]
        assert row["through_vae"]["own"]["background"] == 1 > row["copy"]["own"]["background"]


def test_what_is_measured_is_not_measured_again_unless_another_protocol_asks(
    measured: Path, tiny, adapters: Path, store: Path, weights: Path, monkeypatch
) -> None:
    before = {path.name: path.read_bytes() for path in measured.glob("*.json")}

    def never(*_, **__) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(rows, "Evaluation", never)
    again = {"adapters": adapters, "subjects": COUNT, "noises": 1, "device": CPU}
    rows.evaluate_adapters(DEMO, store, weights, measured, **again)
    assert {path.name: path.read_bytes() for path in measured.glob("*.json")} == before
    with pytest.raises(AssertionError, match="loaded again"):
        rows.evaluate_adapters(DEMO, store, weights, measured, **{**again, "subjects": COUNT + 1})
    with pytest.raises(FlexIPError, match="2 subjects of flexip-seed1, drawn from 1 noises, and 2 were asked for"):
        rows.evaluate_adapters(DEMO, store, weights, measured, **{**again, "noises": 2})
    assert {path.name: path.read_bytes() for path in measured.glob("*.json")} == before
    monkeypatch.setitem(rows.PROTOCOL, "guidance", 7.0)
    with pytest.raises(AssertionError, match="loaded again"):
        rows.evaluate_adapters(DEMO, store, weights, measured, **again)


def test_an_adapter_that_is_not_there_is_told(adapters: Path, store: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(FlexIPError, match="there is no adapter flexip-seed9; there are shipped, flexip"):
        rows.evaluate_adapters(DEMO, store, weights, tmp_path, adapters=adapters, names=["flexip-seed9"])
    with pytest.raises(FlexIPError, match="is no folder; expected one of adapter files"):
        rows.evaluate_adapters(DEMO, store, weights, tmp_path, adapters=tmp_path / "none")


def test_tokens_that_an_ablation_was_trained_without_are_left_out() -> None:
    assert rows.left_out("flexip-no_cls-seed1") == ("cls",) and rows.left_out("flexip-no_queries-seed2") == ("queries",)
    assert rows.left_out("flexip-no_s-seed1") == rows.left_out("flexip-seed1") == ()
    model = Shipped(DEMO, CPU)
    shown = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    whole = model.references(shown).tokens
    assert torch.equal(model.references(shown, without=("cls",)).tokens, whole[:, :-1])
    assert torch.equal(model.references(shown, without=("queries",)).tokens, whole[:, -1:])


def _rows(count: int = 4, gain: float = 1.0, jump: int | None = None) -> list[dict[str, Any]]:
    """Rows of an adapter whose preservation rises and whose fidelity falls along the knob."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)

        def along(knob, rng=rng) -> tuple[np.ndarray, np.ndarray]:
            x = np.array(knob)
            return gain * (0.3 * x + 0.01 * rng.random()), 0.9 - 0.5 * x

        kept, told = along(evaluate.KNOB)
        fine_kept, fine_told = along(evaluate.FINE)
        steps = [0.01] * 20
        if jump is not None:
            steps[jump] = 0.2
        measures = {kind: dict.fromkeys(getattr(judges, kind.upper()), 0.5) for kind in ("own", "other")}

        def row_of(kind: str, k: float, t: float, measures=measures) -> dict[str, float]:
            extra = {"preservation": float(k), "fidelity": float(t), "first": float(k), "text": float(t)}
            return {**measures[kind], **{n: v for n, v in extra.items() if n in measures[kind]}}

        found.append(
            {
                "subject": f"thing {number}",
                "code": str(number),
                "own": [row_of("own", k, t) for k, t in zip(kept, told, strict=True)],
                "other": [row_of("other", k, t) for k, t in zip(kept, told, strict=True)],
                "grid": {"steps": [0.01] * 5, "skips": [0.02] * 4, "far": 0.05},
                "fine": {
                    "steps": steps,
                    "skips": [a + b for a, b in pairwise(steps)],
                    "far": sum(steps),
                    "preservation": fine_kept.tolist(),
                    "fidelity": fine_told.tolist(),
                },
            }
        )
    return found


def test_a_comparison_tells_the_better_trade_and_the_jump_that_a_recalibration_takes_away() -> None:
    found = compare({"flexip-seed1": _rows(), "flexip-seed2": _rows(), "ip-adapter-seed1": _rows(gain=0.5, jump=3)})
    kinds = found["kinds"]
    assert found["subjects"] == 4 and found["first"] == "flexip"
    assert kinds["flexip"]["seeds"] == 2 and kinds["ip-adapter"]["seeds"] == 1
    minus = found["first_minus"]["ip-adapter"]
    assert minus["hypervolume"]["low"] > 0 and minus["hypervolume_shares"]["low"] > 0
    assert kinds["flexip"]["figures"]["largest_jump"]["value"] == pytest.approx(1)
    assert kinds["ip-adapter"]["figures"]["largest_jump"]["value"] == pytest.approx(20 * 0.2 / 0.39, rel=0.01)
    assert kinds["ip-adapter"]["figures"]["largest_jump_recalibrated"]["value"] == pytest.approx(1)
    assert minus["deviation"]["high"] < 0
    assert kinds["flexip"]["figures"]["spearman_preservation"]["value"] == 1


def test_seeds_are_averaged_subject_by_subject() -> None:
    assert seed_groups(["flexip-seed1", "flexip-seed2", "flexip-no_s-seed1", "mine"]) == {
        "flexip": ["flexip-seed1", "flexip-seed2"],
        "flexip-no_s": ["flexip-no_s-seed1"],
        "mine": ["mine"],
    }
    found = compare({"flexip-seed1": _rows(), "flexip-seed2": _rows(gain=0.0)})["kinds"]["flexip"]
    alone = [row["hypervolume"] for row in per_subject(_rows())]
    assert found["figures"]["hypervolume"]["value"] == pytest.approx(np.median(alone) / 2, abs=1e-3)
    assert found["own"]["1"]["preservation"]["value"] == pytest.approx(
        np.mean([row["own"][-1]["preservation"] for row in _rows()]) / 2, abs=1e-3
    )


def test_goals_say_by_how_much_they_are_missed() -> None:
    assert "| met |" in str(Goal("a", 0.6, 0.6))
    assert "missed by 12.5 points" in str(Goal("a", 0.6, 0.475))
    assert "missed by 2.0 points" in str(Goal("a", 0.05, 0.07, at_least=False))


def test_the_record_of_what_was_measured_becomes_card_and_curves(measured: Path, tiny, tmp_path: Path) -> None:
    made = json.loads(json.dumps(record.make_record(DEMO, measured)))
    assert made["weights"] == rows.hashes(DEMO) and made["figures"] == json.loads(json.dumps(summary(made["rows"])))
    assert set(made["comparison"]["kinds"]) == {"flexip", "ip-adapter", "ip-adapter-plus"}
    assert set(made["base"]) == {"3d", "cartoon", "flat", "every"}
    text = tables(made)
    assert "IP-Adapter-Plus (1)" in text and "FlexIP (1)" in text and "nan" not in text
    (tmp_path / "card.md").write_text(f"before\n{BEGIN}old\n{END}after\n", encoding="utf-8")
    write_card(tmp_path / "card.md", made)
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == f"before\n{BEGIN}{text}{END}after\n"
    own = told_runs(made["trained"])
    assert f"| trained, steps × batch | {own} | 7,000 × 4 + 3 × 2 | 7,000 × 4 + 3 × 2 |" in text
    assert f"ships was trained for {own} (steps × batch)" in text and " × " in own
    kept = next(line for line in text.splitlines() if line.startswith("| the same: judge names the reference |"))
    for cell, of_kind in zip(kept.strip("| ").split(" | ")[1:], made["comparison"]["kinds"].values(), strict=True):
        told = [round(100 * at["kept"]["value"]) for at in of_kind["other"].values()]
        assert cell.split(", ") == [f"{share}" for share in told] and len(told) == 6
    draw_curves(made, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000
    assert "not measured" not in text and "2 subjects, 1 noise |" in text
    other = _read(measured, "ip-adapter-seed1") | {"noises": 4}
    (measured / "odd.json").write_text(json.dumps(other))
    with pytest.raises(FlexIPError, match="were drawn from 1 and 4 noises"):
        record.make_record(DEMO, measured)
    (measured / "odd.json").unlink()
    with pytest.raises(FlexIPError, match="has nothing on judges, base, baselines, shipped"):
        record.make_record(DEMO, tmp_path)


def test_pictures_of_the_adapters_beside_each_other_come_from_one_base(
    adapters: Path, store: Path, tiny, tmp_path: Path
) -> None:
    beside.draw_beside(Shipped(DEMO, CPU), Store.open(store), rows.adapter_files(DEMO, adapters), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        sheet = np.asarray(picture, np.int16)
    height, width = (sheet.shape[0] - 6) // 12, (sheet.shape[1] - 6) // 7

    def cell(row: int, column: int) -> np.ndarray:
        corner = sheet[6 + row * height :, 6 + column * width :]
        return corner[22 : height - 6, : width - 6]

    for first in range(0, 12, 4):
        shipped_too, plus, plain = first + 1, first + 2, first + 3
        for column in range(2, 7):  # the same file under another name
            assert np.array_equal(cell(first, column), cell(shipped_too, column))
        assert np.abs(cell(plus, 2) - cell(plain, 2)).mean() < 0.1  # at scale 0 the base alone
        for row in (first, plus, plain):
            assert np.abs(cell(row, 2) - cell(row, 6)).mean() > 0.5, "the knob turns nothing"


def test_a_measure_that_changed_is_found() -> None:
    now = _rows()
    now[0]["own"][-1]["first"] -= 0.5
    changed = differences(now[:1], _rows())["first (own) at γ = 1"]
    assert abs(changed[0] - changed[1]) > 0.4
