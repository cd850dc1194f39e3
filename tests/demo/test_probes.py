"""Linear readers of the parts that a likeness goes through."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flexip_model.__main__ import main
from flexip_model.demo.evaluation import probes
from flexip_model.demo.evaluation.probes import left

from ..support.demo_cast import cast_store, write_store


def test_what_a_reader_leaves_is_0_of_what_is_there_and_1_of_what_is_not() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(2000, 8), torch.randn(8, 3)
    noise = torch.randn(2000, 3)
    for y, share in ((x @ weights, 0), (noise, 1), (x @ weights + noise * (x @ weights).std(0), 0.5)):
        assert left((x[:1500], y[:1500]), (x[1500:], y[1500:])) == pytest.approx(share, abs=0.06)


def test_a_place_that_queries_hold_is_read() -> None:
    """Queries whose first number grows with the row tell rows and no columns."""
    rows = torch.arange(8.0)[:, None].expand(8, 8).flatten()
    queries = torch.randn(6, 64, 4, generator=torch.Generator().manual_seed(0))
    queries[..., 0] = torch.cos(torch.pi * (rows + 0.5) / 8)
    of_rows, of_columns = (
        left(*((part.flatten(0, 1), probes._places(part, number)) for part in (queries[:4], queries[4:])))
        for number in (0, 1)
    )
    assert of_rows < 0.01 and of_columns > 0.9


def test_probe_reads_the_exported_model(tmp_path: Path, monkeypatch, capsys) -> None:
    write_store(cast_store(), tmp_path / "store")
    monkeypatch.setattr(probes, "FITTED", 8)
    monkeypatch.setattr(probes, "READ", 4)
    assert main(["demo-model", "probe", "--work", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for line in ("the subject's latents, of", "%  the encoder's patches", "%  P", "rows, of the base's queries",
                 "columns, of the base's queries", "%  up_blocks.3.attentions.2"):  # fmt: skip
        assert line in said
    assert main(["demo-model", "probe", "--work", str(tmp_path / "none")]) == 2
    assert "run the stage `data` first" in capsys.readouterr().err
