"""The optimizer by its name; that of eight bits where its library is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flexip_model.common.errors import FlexIPError
from flexip_model.train.before.changes import fixed_changes
from flexip_model.train.shared.optimizers import restored, unshared
from flexip_model.train.trainer import Trainer

from ..support.train_rig import config, tensors, train


def test_eight_bits_without_the_library_are_refused_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else found(name, *more)
    )
    with pytest.raises(FlexIPError, match="needs bitsandbytes, which is not installed; `pip install bitsandbytes`"):
        Trainer(config(data, tmp_path, optimizer="adamw8bit"))


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: diffusers imports it, and each process would start seconds later",
)
def test_a_run_with_moments_of_eight_bits_goes_on_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "whole", optimizer="adamw8bit", stages=[{"steps": 4}])
    train(data, tmp_path / "halves", optimizer="adamw8bit", stages=[{"steps": 2}])
    train(data, tmp_path / "halves", optimizer="adamw8bit", stages=[{"steps": 4}])
    whole, halves = (tensors(tmp_path / name, 4) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())
    assert {value.dtype for name, value in whole.items() if name.endswith("|state1")} == {torch.uint8, torch.float32}


def test_a_run_does_not_go_on_with_another_optimizer_and_early_runs_had_adamw() -> None:
    early = {"seed": 0, "batch": 4, "accumulation": 1, "image_share": 0.5, "size": 64, "adapter": {}}
    now = {**early, "optimizer": "adamw", "buckets": None}
    assert fixed_changes(early, now) == []
    assert fixed_changes(early, {**now, "optimizer": "adamw8bit"}) == ["optimizer adamw, the config now says adamw8bit"]


def test_a_count_of_steps_is_a_plain_number_again() -> None:
    """bitsandbytes hands it to its kernels; torch's own is a tensor and stays one."""
    cpu = torch.device("cpu")
    count = restored(torch.as_tensor(7), cpu)
    assert count == 7 and isinstance(count, int)
    assert isinstance(restored(torch.tensor(7.0), cpu), torch.Tensor)
    assert restored(torch.zeros(3, dtype=torch.uint8), cpu).dtype == torch.uint8


def test_what_weights_share_is_written_for_each(tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory; bitsandbytes' table of values belongs to all weights."""
    table = torch.arange(256.0)
    state = unshared({"a|qmap1": table, "b|qmap1": table, "a|step": torch.tensor(3.0)})
    save_file(state, tmp_path / "state.safetensors")
    assert all(torch.equal(value, table) for name, value in state.items() if name.endswith("qmap1"))
