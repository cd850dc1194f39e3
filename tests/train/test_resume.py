"""A run that goes on is the run that was never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flexip_model.common.errors import FlexIPError
from flexip_model.train.configs.options import to_dict
from flexip_model.train.shared import state

from ..support.paths import ROOT
from ..support.train_rig import config, pack, tensors, train

STOPS = int(os.environ.get("FLEXIP_STOPS", "1"))
"""How often a run is stopped; docs/training.md has the figure of 20."""


@pytest.mark.promise(24)
def test_100_steps_are_50_and_50_over_many_epochs_and_with_workers(data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(data, whole, stages=[{"steps": 100}], workers=0)
    for steps in (50, 100):
        train(data, parts, stages=[{"steps": steps}], workers=4)
    a, b = tensors(whole, 100), tensors(parts, 100)
    assert a.keys() == b.keys() and len(a) > 100
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert not torch.equal(tensors(parts, 50)["weights.queries"], b["weights.queries"])


def test_a_run_goes_through_its_stages_and_resumes_in_the_second(tmp_path: Path) -> None:
    data = pack(tmp_path / "data", quality="base")
    pack(data, 3, 3, quality="high", name="fine")
    stages = [{"steps": 2}, {"steps": 2, "quality": "high"}]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(data, whole, stages=stages)
    for steps in (1, 2):
        train(data, parts, stages=[stages[0], {**stages[1], "steps": steps}])
    a, b = tensors(whole, 4), tensors(parts, 4)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [d["name"] for d in state.load(parts / "checkpoints", 4).info["about"]["data"]] == ["fine"]


def test_a_changed_config_does_not_continue_a_run_in_silence(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, stages=[{"steps": 1}])
    with pytest.raises(FlexIPError, match=r"started with seed 0, the config now says 5"):
        train(data, tmp_path, stages=[{"steps": 2}], seed=5)


def test_a_run_goes_on_beside_the_same_encoders_and_on_the_same_data_only(tmp_path: Path) -> None:
    data, run = pack(tmp_path / "data"), tmp_path / "run"
    clip = config(data, run).clip
    train(data, run, stages=[{"steps": 1}])
    with safe_open(clip, "pt") as file:
        metadata = file.metadata()
    save_file({key: value + 0.01 for key, value in load_file(clip).items()}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(FlexIPError, match=r"started with clip .*, whose weights are not those of .*other.safetensors"):
        train(data, run, stages=[{"steps": 2}], clip=str(tmp_path / "other.safetensors"))
    pack(data, 3, 3, name="more")
    with pytest.raises(FlexIPError, match=r"was started on other data: more is new; put them back"):
        train(data, run, stages=[{"steps": 2}])


@pytest.mark.parametrize("point", range(STOPS))
@pytest.mark.promise(48)
def test_sigterm_saves_and_the_same_command_goes_on(data: Path, tmp_path: Path, point: int) -> None:
    path = tmp_path / "my.yaml"
    values = to_dict(config(data, tmp_path / "run", stages=[{"steps": 6}], save_every=1000))
    path.write_text(json.dumps(values, default=list))
    command = [sys.executable, "-m", "flexip_model.train", str(path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {1 + point % 4}/"):
            time.sleep(float(np.random.default_rng(point).uniform(0, 0.4)) * (point > 0))
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait() == 128 + signal.SIGTERM and "goes on from there" in rest
    steps = state.list_steps(tmp_path / "run" / "checkpoints")
    assert len(steps) == 1 and 1 <= steps[0] <= 6
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train(data, tmp_path / "whole", stages=[{"steps": 6}])
    a, b = tensors(tmp_path / "whole", 6), tensors(tmp_path / "run", 6)
    assert all(torch.equal(a[key], b[key]) for key in a)
