"""A tensor file that grows piece by piece is a plain safetensors file, and goes on after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flexip_model.common.errors import FlexIPError
from flexip_model.files.safefile import read_header
from flexip_model.files.tensorfile import TensorFile


def test_files_written_piece_by_piece_are_plain_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wanted = {f"frame-{i}": torch.randn(3, i + 1).half() for i in range(40)}
    wanted["keep"] = torch.ones(5, dtype=torch.uint8)
    path = tmp_path / "a.safetensors"
    file = TensorFile(path, wanted, {"flexip.frames": "x"})
    for name, value in wanted.items():
        file.add(name, value)
        if name == "frame-20":
            file.flush()
            with pytest.raises(FlexIPError, match="another process is writing"):
                TensorFile(path, wanted, {"flexip.frames": "x"})
    file.abandon()
    again = TensorFile(path, wanted, {"flexip.frames": "x"})
    assert again.done == {f"frame-{i}" for i in range(21)}
    for name in wanted.keys() - again.done:
        again.add(name, wanted[name])
    again.close()
    found = load_file(path)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert read_header(path).metadata == {"flexip.frames": "x"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    changed = TensorFile(tmp_path / "b.safetensors", ["a"], {"flexip.frames": "1"})
    changed.add("a", torch.zeros(2))
    changed.flush()
    changed.abandon()
    assert not TensorFile(tmp_path / "b.safetensors", ["a"], {"flexip.frames": "2"}).done
