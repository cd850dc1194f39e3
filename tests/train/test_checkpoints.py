"""Checkpoints survive kills, full disks and damage."""

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

from flexip_model.train.shared import state

from ..support.paths import ROOT

KILLS = 200
"""How often a save is killed; docs/training.md has the figure."""


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
