"""The trainer in trouble: exact resume, and checkpoints that survive kills, full disks and damage."""

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
from flexip_model.train.samples.sample_set import open_samples
from flexip_model.train.shared import state
from flexip_model.train.trainer import Trainer

from ..support.paths import ROOT
from ..support.train_rig import config, pack, tensors, train

KILLS = 200
STOPS = int(os.environ.get("FLEXIP_STOPS", "1"))
"""How often a save is killed and a run stopped; docs/training.md has the figures of 200 and 20."""


# Resume


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


def _machines(data: Path, output: Path, steps: int, stop: int = 0) -> list[dict]:
    """How two processes with an output folder each ended; the second gets SIGTERM after the step `stop`."""
    output.mkdir(exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(Path(__file__).parent / "machine.py"),
        str(data),
        str(output),
        str(steps),
        str(stop),
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((output / f"end-{rank}.json").read_text()) for rank in range(2)]


def test_a_signal_to_one_machine_stops_all_and_all_go_on_from_the_firsts_checkpoint(data: Path, tmp_path: Path) -> None:
    whole = _machines(data, tmp_path / "whole", 6)
    stopped = _machines(data, tmp_path / "parts", 6, stop=2)
    assert [(end["step"], end["code"]) for end in stopped] == [(3, 128 + signal.SIGTERM)] * 2
    assert not (tmp_path / "parts" / "1").exists()
    assert _machines(data, tmp_path / "parts", 6) == whole
    assert [end["step"] for end in whole] == [6, 6] and whole[0]["weights"] == whole[1]["weights"]


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
    with pytest.raises(FlexIPError, match=r"started on 12 groups of drawn, the data now are 12 .* 6 groups of more"):
        train(data, run, stages=[{"steps": 2}])


# Trouble


@pytest.mark.promise(27)
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(data: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 3}]))
    plain = trainer.model.forward
    calls = []

    def spoiled(batch):
        calls.append(0)
        errors = plain(batch)
        return errors * float("nan") if len(calls) == 2 else errors

    monkeypatch.setattr(trainer.model, "forward", spoiled)
    trainer.run()
    assert trainer.skipped == 1 and trainer.step == 3
    assert all(torch.isfinite(value).all() for value in tensors(tmp_path, 3).values())


@pytest.mark.promise(27)
def test_a_run_without_finite_gradients_stops_and_keeps_the_last_good_weights(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flexip_model.train.shared.loop.BAD_STEPS", 3)
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 9}], save_every=1))
    before = {key: value.clone() for key, value in trainer.adapter.state_dict().items()}
    plain = trainer.model.forward
    monkeypatch.setattr(trainer.model, "forward", lambda batch: plain(batch) * float("inf"))
    with pytest.raises(FlexIPError, match="3 steps in a row gave no finite gradient"):
        trainer.run()
    assert all(torch.equal(value, before[key]) for key, value in trainer.adapter.state_dict().items())


@pytest.mark.promise(45)
def test_unreadable_samples_are_replaced_and_counted_and_too_many_end_the_run(tmp_path: Path) -> None:
    data = pack(tmp_path / "data", broken=1)
    trainer = train(data, tmp_path / "run", stages=[{"steps": 4}], bad_share=1.0)
    samples = open_samples(trainer.config, trainer.frozen, 0, 1)
    drawn = [samples[t].unreadable for step in range(4) for t in samples.sampler.tickets(step, 0)]
    assert trainer.unreadable == sum(drawn) > 0
    with pytest.raises(FlexIPError, match="could not be read, more than"):
        train(pack(tmp_path / "worse", broken=4), tmp_path / "run2", stages=[{"steps": 30}], bad_share=0.01)


def test_a_side_without_groups_is_named(tmp_path: Path) -> None:
    data = pack(tmp_path / "data", variants=0)
    with pytest.raises(FlexIPError, match=r"no variant groups .* image_share: 1"):
        train(data, tmp_path / "run")
    train(data, tmp_path / "run", image_share=1, stages=[{"steps": 1}])


@pytest.mark.parametrize("harm", ["truncate", "flip a bit", "lose a file", "lose the manifest", "unfinished"])
@pytest.mark.promise(25)
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path: Path, harm: str) -> None:
    parts = {"weights": {"w": torch.arange(1000.0)}, "ema": {"w": torch.ones(10)}}
    for step in (1, 2):
        state.save(tmp_path, step, parts, {"seen": step}, keep=3)
    newest = tmp_path / "step-0000002"
    file = newest / "weights.safetensors"
    if harm == "truncate":
        file.write_bytes(file.read_bytes()[:-7])
    elif harm == "flip a bit":
        content = bytearray(file.read_bytes())
        content[-9] ^= 4
        file.write_bytes(content)
    elif harm == "lose a file":
        file.unlink()
    elif harm == "lose the manifest":
        (newest / "manifest.json").unlink()
    else:
        newest.rename(tmp_path / ".saving-0000002")
    found, complaints = state.load_newest(tmp_path)
    assert found is not None and found.step == 1 and found.info == {"seen": 1}
    assert torch.equal(found.parts["weights"]["w"], parts["weights"]["w"])
    assert len(complaints) == (harm != "unfinished") and all("step-0000002" in c for c in complaints)
    state.save(tmp_path, 2, parts, {}, keep=3)
    assert state.load(tmp_path, 2).step == 2


@pytest.mark.promise(50)
def test_a_checkpoint_of_another_version_is_named_and_kept(tmp_path: Path) -> None:
    folder = state.save(tmp_path, 3, {"weights": {"w": torch.ones(3)}}, {}, keep=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 1}))
    found, complaints = state.load_newest(tmp_path)
    assert found is None and "has checkpoint version 1, this trainer reads 2" in complaints[0]
    assert next(tmp_path.glob("damaged-step-0000003-*")).is_dir()


@pytest.mark.promise(3)
def test_only_the_newest_checkpoints_stay_and_none_is_pickled(tmp_path: Path) -> None:
    for step in range(1, 6):
        state.save(tmp_path, step, {"weights": {"w": torch.ones(3)}}, {}, keep=2)
    assert state.list_steps(tmp_path) == [4, 5]
    names = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {".safetensors", ".json"}


KILLED = """
import os, sys, torch
from pathlib import Path
from flexip_model.train.shared import state
folder = Path(sys.argv[1])
for _ in sys.stdin:  # a line asks for the next process; torch is imported once for all of them
    child = os.fork()
    if not child:
        step = max(state.list_steps(folder), default=0)
        while True:
            step += 1
            state.save(folder, step, {"weights": {"w": torch.full((300_000,), float(step))}}, {"step": step}, keep=2)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
@pytest.mark.promise(23)
def test_kill_9_during_saves_never_loses_the_last_good_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    last = 0
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        assert nursery.stdin is not None and nursery.stdout is not None
        for _ in range(KILLS):
            nursery.stdin.write("\n")
            nursery.stdin.flush()
            process = int(nursery.stdout.readline())
            while max(state.list_steps(tmp_path), default=0) <= last:
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 0.05)))
            os.kill(process, signal.SIGKILL)
            assert int(nursery.stdout.readline()) == signal.SIGKILL
            found, complaints = state.load_newest(tmp_path)
            assert found is not None and complaints == [] and found.step > last
            assert (found.parts["weights"]["w"] == found.step).all()
            last = found.step


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from flexip_model.files.ip_adapter import convert_ip_adapter, ip_adapter_order
from flexip_model.common.errors import FlexIPError
from flexip_model.train.shared import state

folder = Path(sys.argv[1])
parts = {"weights": {"w": torch.zeros(100_000)}}
state.save(folder, 1, parts, {}, keep=2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    state.save(folder, 2, parts, {}, keep=1)
except FlexIPError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes to fill a disk with")
@pytest.mark.promise(26)
def test_a_full_disk_is_loud_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "step-0000001 and is intact" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001"]
    assert state.load(tmp_path, 1).step == 1


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


@pytest.mark.promise(47)
def test_too_little_memory_is_said_in_one_sentence(data: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 3}], save_every=1))
    plain = trainer.model.forward

    def spoiled(batch):
        if trainer.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return plain(batch)

    monkeypatch.setattr(trainer.model, "forward", spoiled)
    with pytest.raises(FlexIPError, match=r"memory ran out at step 2 .* smaller batch"):
        trainer.run()
    assert state.load_newest(tmp_path / "checkpoints")[0].step == 2


def test_tiny_numbers_are_flushed_while_a_run_trains_and_not_after_it(data: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 1}]))
    plain, seen = trainer.model.forward, []

    def watched(batch):
        seen.append(float(torch.full((64,), 1e-39).mul(0.5).sum()))
        return plain(batch)

    monkeypatch.setattr(trainer.model, "forward", watched)
    trainer.run()
    assert seen == [0.0] and float(torch.full((64,), 1e-39).mul(0.5).sum()) > 0
