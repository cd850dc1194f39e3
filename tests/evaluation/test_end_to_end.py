"""From a benchmark to a report with the model that ships, as docs/evaluation.md goes, on one subject and few steps."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from flexip_model.__main__ import main
from flexip_model.evaluation.benchmarks.opening import SMALL_FOLDER
from flexip_model.evaluation.scoring.store import Run
from flexip_model.evaluation.summary.sweeps import read_sweeps

from ..support.paths import ROOT, SHIPPED
from .making import write_table

ENCODERS = SHIPPED / "encoders"


def test_the_page_s_way_with_the_model_that_ships(tmp_path):
    benchmark = tmp_path / "benchmark"
    shutil.copytree(SMALL_FOLDER / "pictures", benchmark / "pictures")
    row = ("wolf", "wolf", "animal", "pictures/wolf.webp", "pictures/wolf_1.webp")
    write_table(benchmark / "subjects.csv", ("id", "name", "category", "reference", "others"), [row])
    write_table(benchmark / "prompts.csv", ("subject", "prompt"), [("", "a 3d render of a {} on a beach")])
    named = ["--benchmark", str(benchmark), "--device", "cpu"]
    draw = ["evaluate", "generate", *named, "--base", str(SHIPPED), "--seeds", "1", "--guidance", "3", "--steps", "4"]
    adapter = ["--adapter", str(SHIPPED / "flexip_demo.safetensors"), "--gammas", "0,0.5,1"]
    encoders = ["--clip", str(ENCODERS / "clip_vision.safetensors"), "--dino", str(ENCODERS / "dinov2.safetensors")]
    assert main([*draw, *adapter, *encoders, "--out", str(tmp_path / "flexip")]) == 0
    assert main([*draw, "--out", str(tmp_path / "base")]) == 0
    weights = [f"clip={ENCODERS / 'clip_vision.safetensors'}", f"dino={ENCODERS / 'dinov2.safetensors'}"]
    sets = ["--pictures", f"FlexIP={tmp_path / 'flexip'}", "--no-adapter", str(tmp_path / "base")]
    score = ["evaluate", "score", *named, *sets, "--weights", weights[0], "--weights", weights[1]]
    assert main([*score, "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", "report", str(tmp_path / "run")]) == 0
    values = {(v["method"], v["knobs"].get("gamma"), v["metric"]): v["value"] for v in Run(tmp_path / "run").values()}
    assert len(values) == 2 * (3 + 1 + 1 + 1)
    assert values["FlexIP", 1.0, "dino-i"] > values["no adapter", None, "dino-i"]
    assert values["copy of the reference", None, "clip-i"] == pytest.approx(1, abs=1e-4)
    (sweep,) = read_sweeps(Run(tmp_path / "run")).of_method["FlexIP"]
    assert sweep.steps.min() > 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<td>FlexIP gamma=0.5</td>" in page and "<td>no adapter</td>" in page
    assert "the pack&#39;s encoder" in page and "reads no text" in page


def test_the_page_s_commands_are_of_this_program():
    """Each command line in the page is taken by the parser."""
    from flexip_model.__main__ import _parser

    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    commands = [line.split("flexip_model ", 1)[1] for line in lines if line.startswith("python -m flexip_model ")]
    assert len(commands) >= 14
    for command in commands:
        if "--help" not in command:
            _parser().parse_args(shlex.split(command))
