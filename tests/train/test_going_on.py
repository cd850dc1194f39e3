"""What a run that goes on says, writes down and refuses, when something is another than it was."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.files.adapter_file import read_info
from flexip_model.train.shared import state
from flexip_model.train.trainer import Trainer

from ..support.train_rig import config, pack, train


def test_other_pictures_under_the_same_name_are_refused(tmp_path: Path) -> None:
    data, run = pack(tmp_path / "data"), tmp_path / "run"
    train(data, run, stages=[{"steps": 1}])
    others = pack(tmp_path / "others", images=5, variants=7)  # twelve groups of the same name, others in them
    with pytest.raises(FlexIPError, match=r"the pictures of drawn are others \(12 groups then, 12 now\)"):
        train(others, run, stages=[{"steps": 2}])
    assert train(data, run, stages=[{"steps": 2}]).step == 2


def rewrite(folder: Path, column: str, change) -> None:
    """Change a column of the index, group by group."""
    path = folder / "index" / "drawn.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    values = pa.array([change(value) for value in table.column(column).to_pylist()], field.type)
    pq.write_table(table.set_column(place, field, values), path, row_group_size=5)


def test_a_license_that_is_added_is_no_change_and_a_caption_is(tmp_path: Path) -> None:
    data, run = pack(tmp_path / "data"), tmp_path / "run"
    train(data, run, stages=[{"steps": 1}])
    rewrite(data, "license", lambda _: "CC BY 4.0")
    trainer = train(data, run, stages=[{"steps": 2}])
    assert trainer.about["data"][0]["license"] == "CC BY 4.0"
    rewrite(data, "frames", lambda frames: [{**frame, "captions": ["another"]} for frame in frames])
    with pytest.raises(FlexIPError, match="the captions of drawn are others"):
        train(data, run, stages=[{"steps": 3}])


def test_folders_in_another_order_are_refused(tmp_path: Path) -> None:
    a, b, run = pack(tmp_path / "a"), pack(tmp_path / "b", 3, 3, name="more"), tmp_path / "run"
    train(a, run, data=[str(a), str(b)], stages=[{"steps": 1}])
    with pytest.raises(FlexIPError, match="the data sets come in another order"):
        train(a, run, data=[str(b), str(a)], stages=[{"steps": 2}])


def test_what_was_changed_is_said_and_stands_in_checkpoint_file_and_card(data: Path, tmp_path: Path, caplog) -> None:
    train(data, tmp_path, stages=[{"steps": 1}])
    changes = {"lr": 5e-4, "gamma_spread": 0.5, "references": {"white": 0.25}, "stages": [{"steps": 2}]}
    with caplog.at_level("INFO", "flexip_model"):
        trainer = train(data, tmp_path, **changes, log_every=2)
    words = "lr 0.001 → 0.0005"
    assert "from step 1 on the config is another" in caplog.text and words in caplog.text
    for more in ("gamma_spread 1.0 → 0.5", "references.white 0.5 → 0.25", "stages 1 (any) → 2 (any)"):
        assert more in caplog.text
    assert "log_every" not in caplog.text
    [said] = state.load(tmp_path / "checkpoints", 2).info["about"]["changes"]
    assert said.startswith("from step 1: ") and words in said
    path = trainer.export()
    assert read_info(path).training["changes"] == [said]
    assert f"| Changed on the way | {said} |" in path.with_suffix(".md").read_text()
    again = train(data, tmp_path, **{**changes, "stages": [{"steps": 3}]})
    assert again.about["changes"] == [said, "from step 2: stages 2 (any) → 3 (any)"]


def test_stages_that_end_before_the_step_reached_are_refused(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, stages=[{"steps": 2}, {"steps": 1}])
    with pytest.raises(FlexIPError, match="has come to step 3, and the stages of the config end at step 2"):
        train(data, tmp_path, stages=[{"steps": 2}])
    with pytest.raises(FlexIPError, match=r"by the stages 2 \(any\), 1 \(any\), and the config now says 1 \(any\)"):
        train(data, tmp_path, stages=[{"steps": 1}, {"steps": 9}])
    assert train(data, tmp_path, stages=[{"steps": 2}, {"steps": 2}]).step == 4


def test_logs_hold_each_step_once_after_a_kill_and_tensorboard_keeps_the_last(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, stages=[{"steps": 2}], preview_every=2, preview_steps=1)
    log = tmp_path / "log.jsonl"
    # A run that is killed has logged steps after its checkpoint, and half a line.
    log.write_text(log.read_text() + '{"step": 3, "loss/all": 1}\n{"step": 4, "los')
    train(data, tmp_path, stages=[{"steps": 4}], preview_every=2, preview_steps=1)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]
    events = EventAccumulator(str(tmp_path / "logs"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss/all")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("sweep")] == [2, 4]


def test_a_run_whose_weights_fit_no_file_ends_with_advice_and_keeps_the_last_good_ones(data, tmp_path, capsys) -> None:
    train(data, tmp_path, stages=[{"steps": 1}])
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 2}]))

    def burst(batch):
        with torch.no_grad():
            for average in trainer.ema.shadow_params:
                average.fill_(1e6)
        return type(trainer).fetch(trainer, batch)

    trainer.fetch = burst
    with pytest.raises(FlexIPError, match=r"has diverged: at step 2 .* the checkpoint of step 1 is intact: lower lr"):
        trainer.run()
    assert state.list_steps(tmp_path / "checkpoints") == [1]
    # A checkpoint of such weights, as earlier versions wrote them, is not exported in silence either.
    found = state.load(tmp_path / "checkpoints", 1)
    large = {key: torch.full_like(value, 1e6) for key, value in found.parts["ema"].items()}
    state.save(tmp_path / "checkpoints", 2, {**found.parts, "ema": large}, found.info, keep=3)
    assert main(["export", str(tmp_path)]) == 2
    assert "had diverged at step 2" in (said := capsys.readouterr().err) and "--step" in said


def test_a_run_that_ends_among_bad_steps_is_not_finished(data: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 4}]))
    plain = trainer.model.forward
    monkeypatch.setattr(
        trainer.model, "forward", lambda batch: plain(batch) * (1 if trainer.step < 2 else float("nan"))
    )
    with pytest.raises(FlexIPError, match=r"ended at step 4, but its last 2 steps .* those of step 2; lower lr"):
        trainer.run()
    assert "finished" not in caplog.text
