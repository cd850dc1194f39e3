"""`evaluate score`: what is written, what is marked, and that a run that was killed ends as a clean one."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.evaluation.metrics.measure import Measure, Score
from flexip_model.evaluation.metrics.weights import Weights
from flexip_model.evaluation.pictures.beside import COPY, TRUE
from flexip_model.evaluation.pictures.forms import read_pictures
from flexip_model.evaluation.scoring.score import score
from flexip_model.evaluation.scoring.store import Lines, Run

from ..support.paths import ROOT
from .making import tiny_benchmark, tiny_pictures
from .tiny_judges import write_clip, write_dino

CPU = torch.device("cpu")
GAMMAS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A benchmark, two methods (one is swept) and two judges."""
    folder = tmp_path_factory.mktemp("world")
    benchmark = tiny_benchmark(folder / "benchmark")
    tiny_pictures(folder / "mine", benchmark, GAMMAS)
    tiny_pictures(folder / "other", benchmark, shift=90)
    write_clip(folder / "clip")
    write_dino(folder / "dino")
    return folder


def command(world, out, *more):
    return [
        *("evaluate", "score", "--benchmark", str(world / "benchmark"), "--out", str(out), "--device", "cpu"),
        *("--pictures", f"mine={world / 'mine'}", "--pictures", f"other={world / 'other'}"),
        *("--weights", f"clip={world / 'clip'}", "--weights", f"dino={world / 'dino'}", "--batch", "4", *more),
    ]


@pytest.fixture(scope="module")
def clean(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean")
    assert main(command(world, out)) == 0
    return out


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_picture_has_every_score_that_can_be_had(clean):
    run = Run(clean)
    assert run.finished
    assert [m["name"] for m in run.record["methods"]] == ["mine", "other", COPY, TRUE]
    assert [m["knob"] for m in run.record["methods"]] == ["gamma", None, None, None]
    assert {k for k, v in run.record["metrics"].items() if not v["lacking"]} == {"clip-t", "clip-i", "dino-i"}
    assert "--weights judge=FOLDER" in run.record["metrics"]["match"]["lacking"][0]
    assert len(run.record["metrics"]["clip-i"]["weights"]["clip"]["hash"]) == 16
    counts = {m["name"]: m["pictures"] for m in run.record["methods"]}
    assert counts == {"mine": 18, "other": 6, COPY: 6, TRUE: 2}
    assert len(run.scores) == 3 * (18 + 6 + 6) + 2 * 2
    copies = [v for v in run.values() if v["method"] == COPY and v["metric"] != "clip-t"]
    assert all(v["value"] == pytest.approx(1, abs=1e-5) for v in copies)


def test_sweeps_hold_the_distances_of_all_pairs(clean):
    sweeps = Run(clean).sweeps
    assert len(sweeps) == 6
    one = sweeps[0]
    assert one["values"] == [0, 0.5, 1] and one["knob"] == "gamma"
    for kind in ("pixels", "dino"):
        matrix = torch.tensor(one["distances"][kind])
        assert matrix.shape == (3, 3) and torch.equal(matrix, matrix.T) and float(matrix.diagonal().abs().sum()) == 0
        assert matrix[0, 2] <= matrix[0, 1] + matrix[1, 2] + 1e-5


def test_a_second_run_adds_nothing(world, clean, tmp_path, monkeypatch):
    out = tmp_path / "again"
    shutil.copytree(clean, out)
    monkeypatch.setattr(Measure, "__call__", lambda *args: pytest.fail("scored again"))
    assert main(command(world, out)) == 0
    assert files(out) == files(clean)


def test_killed_half_way_it_ends_as_a_clean_one(world, clean, tmp_path):
    out = tmp_path / "killed"
    arguments = [sys.executable, "-m", "flexip_model", *command(world, out, "--batch", "1")]
    process = subprocess.Popen(
        arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 300:
        if (out / "scores.jsonl").exists() and (out / "scores.jsonl").read_bytes().count(b"\n") >= 12:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    scores = out / "scores.jsonl"
    assert 12 <= scores.read_bytes().count(b"\n") < len(Run(clean).scores)
    assert not Run(out).finished
    with scores.open("ab") as file:
        file.write(b'{"method": "mine", "pict')
    assert main(command(world, out)) == 0
    assert files(out) == files(clean)


def test_a_corrupt_a_missing_and_a_new_picture(world, clean, tmp_path, monkeypatch):
    """Damaged ones are marked and not averaged; a picture that changed is scored again, others are not."""
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    assert main(command(copy, tmp_path / "out")) == 0
    data = (copy / "mine" / "dog_0_0.5.png").read_bytes()
    (copy / "mine" / "dog_0_0.5.png").write_bytes(data[:40])
    (copy / "other" / "cup_1_0.7.png").unlink()
    shutil.copy(copy / "other" / "hat_0_0.7.png", copy / "other" / "hat_1_0.7.png")
    done = []
    original = Measure.__call__
    monkeypatch.setattr(Measure, "__call__", lambda self, m, items: done.extend(items) or original(self, m, items))
    assert main(command(copy, tmp_path / "out")) == 0
    assert len(done) == 3
    notes = {(s["method"], s["picture"]): s["note"] for s in Run(tmp_path / "out").scores if s["score"] is None}
    assert set(notes) == {("mine", "dog_0_0.5.png"), ("other", "cup_1_0.7.png")}
    assert "cannot be read" in notes["mine", "dog_0_0.5.png"] and "is missing" in notes["other", "cup_1_0.7.png"]
    left = [s for s in Run(tmp_path / "out").sweeps if not s["distances"]]
    assert len(left) == 1 and "the sweep is left out" in left[0]["note"]


def test_nan_is_named_and_marked(world, tmp_path, monkeypatch):
    from flexip_model.evaluation.benchmarks.opening import open_benchmark

    measure = Measure(Weights({"dino": world / "dino"}), ["dino-i"], CPU)
    monkeypatch.setattr(Measure, "_alike", lambda self, items, family: [Score(math.nan)] * len(items))
    benchmark = open_benchmark(world / "benchmark")
    score(benchmark, [read_pictures("other", world / "other", benchmark)], measure, tmp_path)
    assert {(s["score"], s["note"]) for s in Run(tmp_path).scores} == {(None, "dino-i is nan")}
    json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0], parse_constant=lambda name: pytest.fail(name))


def test_a_prompt_may_hold_any_sign(tmp_path):
    entries = [{"a": 1, "prompt": 'a\u2028b\x85c\x0b "quoted" γ'}, {"a": 2, "prompt": "\n"}]
    Lines(tmp_path / "x.jsonl", ("a",)).add(entries)
    assert list(Lines(tmp_path / "x.jsonl", ("a",)).entries.values()) == entries


def test_a_damaged_line_and_a_folder_of_nothing_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(FlexIPError, match="line 2 is damaged"):
        Lines(tmp_path / "x.jsonl", ("a",))
    with pytest.raises(FlexIPError, match="is no scored run"):
        Run(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--metrics", "fid"], "no metric 'fid'"),
        (["--batch", "0"], "--batch is 0"),
        (["--pictures", "mine"], "expected NAME=FOLDER"),
        (["--pictures", f"{COPY}=x"], "none of copy of the reference"),
    ],
)
def test_mistakes_get_one_sentence(world, tmp_path, capsys, arguments, told):
    assert main(command(world, tmp_path, *arguments)) == 2
    assert told in capsys.readouterr().err
