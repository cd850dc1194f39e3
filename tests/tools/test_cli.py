"""The command line: what `inspect` says, what `convert` refuses, exit codes."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from flexip_model.__main__ import main
from flexip_model.files.adapter_file import save_adapter
from flexip_model.tools.benchmark.timing import Row, compare, table

from ..support.helpers import tiny_adapter
from ..support.paths import ROOT


def saved(folder: Path, **training) -> Path:
    adapter = tiny_adapter()
    path = folder / "mine.safetensors"
    encoders = {"clip": {"name": "a CLIP", "hash": "ab12"}, "retrieval": {"name": "a DINO", "hash": ""}}
    save_adapter(path, adapter.config, adapter.state_dict(), training=training, encoders=encoders, title="Mine")
    return path


def test_inspect_says_what_the_file_is_and_from_what_it_was_trained(tmp_path, capsys):
    assert main(["inspect", str(saved(tmp_path, trained=True, steps=1234, data="emoji"))]) == 0
    out = capsys.readouterr().out
    for part in (
        "FlexIP adapter",
        "trained         yes",
        "steps         1234",
        "data          emoji",
        "a CLIP ab12",
        "α 0.9, β 0.9",
        "width 64, depth 2, 4 heads of 16, 16 queries",
        "Mine",
    ):
        assert part in out


def test_inspect_says_loudly_that_an_adapter_is_untrained(tmp_path, capsys):
    assert main(["inspect", str(saved(tmp_path, trained=False))]) == 0
    assert "NO: a bootstrap" in capsys.readouterr().out


def test_mistakes_get_one_sentence_and_exit_code_2(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 2
    assert main(["convert", str(saved(tmp_path, trained=True)), str(tmp_path / "out.safetensors")]) == 2
    (tmp_path / "there.safetensors").touch()
    assert main(["convert", "any", str(tmp_path / "there.safetensors")]) == 2
    assert main(["convert", "any", str(tmp_path / "no" / "out.safetensors")]) == 2
    assert main(["benchmark", "speed"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(line.startswith("error: ") for line in lines)
    assert "there is no file" in lines[0] and "exists already" in lines[2] and "make it first" in lines[3]
    assert not (tmp_path / "out.safetensors").exists()


def test_it_runs_as_a_module_and_names_its_commands():
    done = subprocess.run([sys.executable, "-m", "flexip_model", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for command in ("inspect", "convert", "benchmark", "demo-model"):
        assert command in done.stdout


def test_an_ip_adapter_file_is_told_how_to_become_one(tmp_path, capsys):
    path = tmp_path / "ip.safetensors"
    save_file({"ip_adapter.1.to_k_ip.weight": torch.zeros(320, 768)}, path)
    assert main(["inspect", str(path)]) == 2
    assert "python -m flexip_model convert" in capsys.readouterr().err


def test_compare_swaps_the_order_and_gives_the_rounds_own_ratios():
    calls = []
    row = compare("a", lambda: calls.append("ours"), lambda: calls.append("baseline"), rounds=2, goal="≤ 1")
    assert calls == ["baseline", "ours", "baseline", "ours", "ours", "baseline"]
    assert row.spread[0] <= row.ratio <= row.spread[1]
    text = table([row, Row("b", 0.5, None, None, None, "MB", "≤ 1 MB")])
    assert text.splitlines()[-1] == "| b | 0.5 MB |  |  | ≤ 1 MB |"
