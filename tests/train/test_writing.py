"""A run's folder: full disks, places that cannot be written, two runs at once, errors in loading processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.files.adapter_file import load_adapter_file
from flexip_model.train.configs.options import to_dict
from flexip_model.train.samples.loader import Failure
from flexip_model.train.shared import lock, state
from flexip_model.train.trainer import Trainer

from ..support.paths import ROOT
from ..support.train_rig import config, pack, tensors, train

NEEDS_LIMITS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")


@contextmanager
def full_disk(free: int = 60) -> Iterator[None]:
    """Within it, no file can grow beyond `free` bytes."""
    import resource

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


class Full(Trainer):
    """A run whose disk is full while it logs and draws, and has room for its checkpoints."""

    def log(self) -> None:
        with full_disk():
            super().log()

    def stepped(self) -> None:
        with full_disk():
            super().stepped()


@NEEDS_LIMITS
def test_a_disk_that_is_full_for_logs_and_previews_loses_no_step_and_is_told(data, tmp_path, caplog, capfd) -> None:
    trainer = Full(config(data, tmp_path, stages=[{"steps": 3}], preview_every=3, preview_steps=1))
    with caplog.at_level("INFO", "flexip_model"):
        trainer.run()
    assert state.list_steps(tmp_path / "checkpoints") == [3]
    for name in ("log.jsonl", "logs", "step-0000003.png"):
        assert f"{name} cannot be written" in caplog.text
    assert "Traceback" not in capfd.readouterr().err
    text = (tmp_path / "log.jsonl").read_text()
    assert text == "" or all(json.loads(line) for line in text.splitlines())


def test_the_last_step_is_saved_before_its_preview_is_drawn(data: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 2}], preview_every=2, preview_steps=1))
    seen = []
    plain = trainer.stepped

    def watched() -> None:
        seen.append((trainer.step, state.list_steps(trainer.checkpoints)))
        plain()

    monkeypatch.setattr(trainer, "stepped", watched)
    trainer.run()
    assert seen == [(1, []), (2, [2])]


@pytest.mark.parametrize(
    "error", [KeyError("broken"), FlexIPError("no"), OSError(5, "bad"), torch.OutOfMemoryError("x")]
)
def test_whatever_ends_a_run_the_steps_that_were_taken_are_saved(data, tmp_path, monkeypatch, error) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 9}]))
    plain = trainer.model.forward

    def failing(batch):
        if trainer.step == 2:
            raise error
        return plain(batch)

    monkeypatch.setattr(trainer.model, "forward", failing)
    with pytest.raises((type(error), FlexIPError)):
        trainer.run()
    train(data, tmp_path, stages=[{"steps": 3}])
    whole = train(data, tmp_path / "whole", stages=[{"steps": 3}])
    a, b = tensors(tmp_path, 3), tensors(tmp_path / "whole", 3)
    assert state.list_steps(tmp_path / "checkpoints") == [2, 3]
    assert whole.step == 3 and all(torch.equal(a[key], b[key]) for key in a)


def test_an_output_that_cannot_be_written_is_one_sentence(data: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "my.yaml"
    path.write_text(json.dumps(to_dict(config(data, tmp_path / "file" / "run")), default=list))
    assert main(["train", str(path)]) == 2
    assert "error: the output folder" in capsys.readouterr().err


@NEEDS_LIMITS
def test_an_export_on_a_full_disk_is_one_sentence(data: Path, tmp_path: Path, capsys) -> None:
    train(data, tmp_path, stages=[{"steps": 1}])
    with full_disk(10_000):
        assert main(["export", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert re.search(r"^error: .*cannot be written .*\n\Z", said, re.MULTILINE) and "Traceback" not in said
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob(".*.tmp"))


def test_an_export_passes_over_a_damaged_checkpoint_and_names_the_others(data, tmp_path, caplog, capsys) -> None:
    train(data, tmp_path, stages=[{"steps": 2}], save_every=1)
    damaged = tmp_path / "checkpoints" / "step-0000002" / "ema.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with caplog.at_level("INFO", "flexip_model"):
        assert main(["export", str(tmp_path), str(tmp_path / "a.safetensors")]) == 0
    assert "ema.safetensors is not as it was written; it is passed over" in caplog.text
    assert load_adapter_file(tmp_path / "a.safetensors")[0].training["steps"] == 1
    assert damaged.is_file()  # an export takes nothing away
    assert main(["export", str(tmp_path), "--step", "2"]) == 2
    assert "give another step with --step, there are 1, 2" in capsys.readouterr().err


def test_trackers_get_every_entry_and_unknown_ones_are_named_before_the_first_step(data, tmp_path, caplog) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # The one of accelerate's trackers that is installed with the trainer; all go the same way.
    train(data, tmp_path, stages=[{"steps": 2}], trackers="tensorboard")
    events = EventAccumulator(str(tmp_path / "trackers" / "flexip"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/all")] == [1, 2]
    with pytest.raises(FlexIPError, match=r"there is no tracker 'wandbee'; accelerate knows aim, .*wandb"):
        train(data, tmp_path, trackers=["wandbee"])
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 3}], trackers=["tensorboard"]))
    trainer._resume()
    [tracker] = trainer.watch._records._trackers
    tracker.writer.close()
    (tmp_path / "trackers").rename(tmp_path / "gone")
    tracker.writer = None  # it fails from here on, and the run does not
    with caplog.at_level("INFO", "flexip_model"):
        trainer.run()
    assert trainer.step == 3 and "tensorboard did not take the entry of step 3" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_in_a_loading_process_are_one_sentence(tmp_path: Path, workers: int, capsys) -> None:
    path = tmp_path / "my.yaml"
    data = pack(tmp_path / "data", broken=7)
    values = to_dict(config(data, tmp_path / "run", bad_share=1.0, workers=workers, stages=[{"steps": 40}]))
    path.write_text(json.dumps(values, default=list))
    assert main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith("error: "))
    assert "image groups in a row could not be read" in line and "Traceback" not in said and "worker" not in line


class Odd(Trainer):
    """A run one of whose loading processes meets what nobody thought of, or is killed."""

    harm = "key"

    def _stage(self, samples, begun: int, steps: int) -> None:
        make = samples._make

        def spoiled(*arguments):
            if self.harm == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.harm == "memory":
                raise MemoryError
            raise KeyError("strange")

        samples._make = spoiled
        super()._stage(samples, begun, steps)
        samples._make = make


@pytest.mark.skipif(sys.platform == "win32", reason="samples are spoiled by a fork")
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("key", r"image sample 0 of stage 1 could not be made \(KeyError: 'strange'\).* please report"),
        ("memory", "memory ran out while .* fewer workers"),
        ("kill", "a loading process was lost .* fewer workers"),
    ],
)
def test_whatever_leaves_a_loading_process_is_a_sentence(data: Path, tmp_path: Path, harm: str, words: str) -> None:
    trainer = Odd(config(data, tmp_path, workers=1))
    trainer.harm = harm
    with pytest.raises(FlexIPError, match=words):
        trainer.run()


def test_a_failure_keeps_the_place_of_a_mistake_of_the_program_alone() -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        assert "test_writing.py" in Failure.of(error, "a batch").trace
    assert Failure.of(FlexIPError("said"), "a batch") == Failure("said")


LOADING = """
import signal, sys
from flexip_model.train import cli, trainer

def loading(config):
    signal.raise_signal(signal.SIGINT)
    return config

trainer.load_checked = loading
sys.exit(cli.main([sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT of this kind")
def test_ctrl_c_while_a_run_loads_is_one_line(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(json.dumps(to_dict(config(data, tmp_path / "run")), default=list))
    done = subprocess.run([sys.executable, "-c", LOADING, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130 and "stopped by Ctrl-C" in done.stderr and "Traceback" not in done.stderr


HOLDER = """
import sys, time
from pathlib import Path
from flexip_model.train.shared.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_share_an_output_and_a_killed_one_leaves_it(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 1}]))
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(FlexIPError, match="another run is working in"):
            trainer.run()
        assert trainer.step == 0
        other.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    time.sleep(0.1)
    trainer.run()
    assert trainer.step == 1
