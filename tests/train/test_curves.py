"""Curves of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.train.watching.curves import read_curve


def run(folder: Path, losses: list[float]) -> Path:
    """A run's output folder, with a log of other entries between those of the validation."""
    folder.mkdir()
    entries = [{"step": 10 * n, "validation/all": loss} for n, loss in enumerate(losses, 1)]
    others = [{"step": 10 * n + 5, "loss/all": 1.0} for n in range(3)]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [*entries, *others]))
    return folder


def test_runs_are_drawn_into_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run(tmp_path / "first", [0.4, 0.3, 0.2]), run(tmp_path / "second", [0.4, 0.39])
    assert read_curve(first, "validation/all") == ([10, 20, 30], [0.4, 0.3, 0.2])
    out = tmp_path / "curves.png"
    assert main(["curves", str(first), str(second), "--out", str(out)]) == 0
    colors = {color for _, color in Image.open(out).convert("RGB").getcolors(1 << 20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # the first two of matplotlib's
    assert main(["curves", str(first), "--out", str(out), "--value", "validation/none"]) == 2
    assert "has no validation/none; it has loss/all, validation/all" in capsys.readouterr().err
    assert main(["curves", str(tmp_path), "--out", str(out)]) == 2
    assert "give the output folder of a run" in capsys.readouterr().err
