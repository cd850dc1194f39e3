"""The validation loss: the same groups, noise and noise levels each time, by side of the gate and γ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flexip_model.__main__ import main
from flexip_model.files.adapter_file import read_info
from flexip_model.train.shared import state
from flexip_model.train.trainer import Trainer
from flexip_model.train.watching.validation import GAMMAS, Validation, read_best

from ..support.train_rig import config, pack, train


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups to train on, and four that lie in `val`."""
    folder = pack(tmp_path_factory.mktemp("held") / "data")
    return pack(folder, 2, 2, name="held", split="val")


def entries(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry for entry in found if "validation/all" in entry]


def test_it_is_the_same_at_every_call_whatever_the_seed_and_depends_on_gamma(held: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(held, tmp_path))
    device = torch.device("cpu")
    first = Validation(trainer.config, trainer.frozen).measure(trainer.model, device)
    other = config(held, tmp_path, seed=9, batch=2, dropout={"image": 0.4, "text": 0.4, "both": 0})
    again = Validation(other, trainer.frozen).measure(trainer.model, device)
    assert first == pytest.approx(again, rel=1e-5)
    keys = {f"validation/{side}/gamma_{gamma:g}" for side in ("image", "variant") for gamma in GAMMAS}
    assert set(first) == keys | {"validation/all"} and len({first[key] for key in keys}) == 6
    assert first["validation/all"] == pytest.approx(sum(first[key] for key in keys) / 6)


def test_a_run_measures_it_marks_its_best_checkpoint_and_keeps_it(held: Path, tmp_path: Path, caplog, capsys) -> None:
    every = {"validation": {"every": 1, "groups": 2}, "keep": 1, "stages": [{"steps": 4}]}
    trainer = Trainer(config(held, tmp_path, **every))
    plain, losses = trainer.watch.validate, iter([3.0, 1.0, 2.0, 4.0])
    measured: list[float | None] = []

    def steered(step):  # which step is the best is set, so that it is not the last
        measured.append(plain(step))
        return next(losses)

    trainer.watch.validate = steered
    with caplog.at_level("INFO", "flexip_model"):
        trainer.run()
    found = entries(tmp_path)
    assert [entry["step"] for entry in found] == [1, 2, 3, 4]
    assert measured == pytest.approx([entry["validation/all"] for entry in found], abs=1e-5)
    assert "step 4: validation loss" in caplog.text and "at γ 0, 0.5, 1" in caplog.text
    assert read_best(tmp_path / "checkpoints") == (2, 1.0) and state.list_steps(tmp_path / "checkpoints") == [2, 4]
    assert main(["export", str(tmp_path), str(tmp_path / "best.safetensors"), "--best"]) == 0
    assert read_info(tmp_path / "best.safetensors").training["steps"] == 2
    # A run that goes on knows its best, and looking changes nothing of what is trained.
    assert Trainer(config(held, tmp_path, **every)).best == (2, 1.0)
    train(held, tmp_path / "plain", stages=[{"steps": 4}])
    a, b = (state.load(run / "checkpoints", 4).parts["weights"] for run in (tmp_path, tmp_path / "plain"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert main(["export", str(tmp_path / "plain"), "--best"]) == 2
    assert "marked as the best" in capsys.readouterr().err


def test_what_no_validation_group_tells_of_is_said(data: Path, tmp_path: Path, caplog) -> None:
    with caplog.at_level("INFO", "flexip_model"):
        train(data, tmp_path, stages=[{"steps": 1}], validation={"every": 1})
    assert "no image or variant groups lie in the split val" in caplog.text and entries(tmp_path) == []
    assert read_best(tmp_path / "checkpoints") is None
