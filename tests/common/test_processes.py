"""Work in several processes: every share once, errors in a sentence, and no process outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flexip_model.common.errors import FlexIPError
from flexip_model.common.processes import Share, given_share, run_shares

from ..support.helpers import import_tests_from_here
from ..support.paths import ROOT


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import_tests_from_here(monkeypatch)


def note(folder: Path, share: Share) -> None:
    (folder / str(share.rank)).write_text(f"{share.world_size} {share.local_rank}")


def refuse_one(folder: Path, share: Share) -> None:
    if share.rank == 1:
        raise FlexIPError("the second share is bad")
    time.sleep(0.5)
    note(folder, share)


def die(folder: Path, share: Share) -> None:
    if share.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def sleep(folder: Path, share: Share) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def sleep_in_pool(folder: Path) -> None:
    sleep(folder, Share())


def test_each_process_gets_its_share(tmp_path: Path) -> None:
    run_shares(note, tmp_path, 3)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {str(i): f"3 {i}" for i in range(3)}


def test_a_share_that_fails_is_told_and_the_others_are_finished(tmp_path: Path) -> None:
    with pytest.raises(FlexIPError, match="^the second share is bad$"):
        run_shares(refuse_one, tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    with pytest.raises(FlexIPError, match=r"1 of 2 processes ended .*exit code -9.* run the same command again"):
        run_shares(die, tmp_path, 2)


def test_a_launchers_share_is_read_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert given_share() == Share(0, 1, 0)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert given_share() == Share(5, 8, 1)
    monkeypatch.setenv("WORLD_SIZE", "eight")
    with pytest.raises(FlexIPError, match="must be whole numbers"):
        given_share()


STARTED = {
    "shares": "run_shares(t.sleep, folder, 2)",
    "pool": "list(worker_pool(2).map(t.sleep_in_pool, [folder] * 2))",
}


@pytest.mark.parametrize("how", STARTED)
def test_no_process_outlives_a_parent_that_is_killed(tmp_path: Path, how: str) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport tests.common.test_processes as t\n"
        "from flexip_model.common.processes import run_shares\nfrom flexip_model.common.prefetch import worker_pool\n"
        f"folder = Path(sys.argv[1])\nif __name__ == '__main__':\n    {STARTED[how]}\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    while len(pids := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < end, "a process outlived its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
