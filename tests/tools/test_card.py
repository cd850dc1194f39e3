"""The card check, rehearsed on the CPU: its parts run, keep their limits, and lose nothing when one fails."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.tools.benchmark import in_process
from flexip_model.tools.benchmark.card.plan import TINY
from flexip_model.tools.benchmark.card.report import Part, Report
from flexip_model.tools.benchmark.card.run import PARTS, Machine, run_parts
from flexip_model.tools.benchmark.in_process import TookTooLong, measured

CPU = Machine("cpu", 0, None)


def check(folder: Path, *names: str, machine: Machine = CPU, total: float = 600, **changes: object) -> Report:
    report = Report({"device": "CPU"}, [Part(name, PARTS[name].title) for name in names])
    run_parts(report, folder, replace(TINY, **changes), machine, total)
    return report


def collect(found: list[dict[str, object]], rows: Iterator[dict[str, object]]) -> None:
    """Keep what came before an error."""
    for row in rows:
        found.append(row)


def test_the_rehearsal_measures_every_part_but_compiling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in PARTS if not name.startswith("compile")]
    assert main(["benchmark", "card", "--tiny", "--out", str(tmp_path), "--only", ",".join(names)]) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    parts = {part["name"]: part for part in written["parts"]}
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys(names, "done")
    assert {"device", "date", "torch", "ComfyUI", "seed"} <= set(written["about"])

    effect, *parity = parts["parity"]["figures"]
    assert min(effect["γ 0"], effect["γ 1"]) > 0.1 and len(parity) == 2 * 3
    for figure in parity:
        most = 1e-5 if figure["dtype"] == "float32" else 0.1
        assert all(figure[column] <= most for column in ("unpatched", "γ 0", "γ 0.5", "γ 1"))
    assert [figure["step"].split(",")[0] for figure in parts["steps"]["figures"]] == ["diffusers"] * 2 + ["ComfyUI"]
    assert all(figure["ratio"] > 0.5 for figure in parts["steps"]["figures"])
    assert [figure["of all, of their norm"] for figure in parts["gradients"]["figures"]] == [0, 0]  # CPU and CPU
    (memory,) = parts["memory"]["figures"]
    assert memory["largest difference of the latents from the first mode's"] == 0
    assert memory["from an unpatched run, in it"] > 0.1
    ratio = parts["training"]["figures"][-1]
    assert ratio["ratio"] > 0 and ratio["goal"] == "≥ 1.8"

    page = (tmp_path / "card.md").read_text(encoding="utf-8")
    for part in parts.values():
        assert part["title"] in page and part["title"] in out
        assert all(str(next(iter(figure.values()))) in page for figure in part["figures"])
    assert "a rehearsal" in page and "goal ≥ 1.8" in out


def test_a_part_that_fails_is_reported_and_the_next_one_runs(tmp_path: Path) -> None:
    failed, fine = check(tmp_path, "memory", "gradients").parts
    assert failed.state == "failed" and "COMFYUI_PATH" in failed.error
    assert fine.state == "done" and len(fine.figures) == 2
    assert "COMFYUI_PATH" in (tmp_path / "card.md").read_text(encoding="utf-8")


def test_what_a_failed_part_printed_is_in_the_report(tmp_path: Path) -> None:
    (part,) = check(tmp_path, "training", size=100).parts
    assert part.state == "failed" and "Traceback" in (tmp_path / "card.log").read_text(encoding="utf-8")
    assert "multiple of 8" in part.error


def test_a_part_stops_at_its_limit_and_keeps_its_figures(tmp_path: Path) -> None:
    stopped, late = check(tmp_path, "steps", "gradients", total=1e9, patience=1e-3).parts
    assert stopped.state == "stopped at its limit of 0 s" and late.state == stopped.state
    (unbegun,) = check(tmp_path, "steps", total=0).parts
    assert unbegun.state == "not begun, the time was over"
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))["parts"][0]["state"] == unbegun.state


def test_a_process_ends_with_its_limit_and_gives_out_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, subprocess, sys, time\n"
        "def rows(first):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    print('not a figure')\n"
        "    yield {'first': first, 'pids': [os.getpid(), child.pid]}\n"
        "    time.sleep(600)\n"
    )
    monkeypatch.setattr(in_process, "PACK", tmp_path)
    began, found = time.monotonic(), []
    with (tmp_path / "log").open("w") as log, pytest.raises(TookTooLong, match="limit of 15 s"):
        collect(found, measured("slow:rows", {"first": 1}, limit=15, log=log))
    assert 15 < time.monotonic() - began < 60 and found[0]["first"] == 1
    assert (tmp_path / "log").read_text() == "not a figure\n"
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in found[0]["pids"] if psutil.pid_exists(pid)], 10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_process_that_fails_says_so_after_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.py").write_text("def rows():\n    yield {'a': 1}\n    raise ValueError('no')\n")
    monkeypatch.setattr(in_process, "PACK", tmp_path)
    found = []
    with (tmp_path / "log").open("w") as log, pytest.raises(FlexIPError, match="exit code 1"):
        collect(found, measured("bad:rows", {}, log=log))
    assert found == [{"a": 1}] and "ValueError: no" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tiny"], "--out"),
        (["--tiny", "--out", "x", "--only", "speed"], "parity, steps"),
        *([] if torch.cuda.is_available() else [(["--out", "x"], "--tiny")]),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_made(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "card", *arguments]) == 2
    assert named in capsys.readouterr().err and not list(tmp_path.iterdir())
