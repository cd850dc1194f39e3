"""What a user sees: the log's messages as plain lines on stdout, in every process, and lines of progress."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from flexip_model.common import console
from flexip_model.common.console import Progress, is_log_shown, shown_log
from flexip_model.common.processes import Share, run_shares

from ..support.helpers import import_tests_from_here
from ..support.paths import ROOT

log = logging.getLogger("flexip_model.somewhere")


def test_messages_are_plain_lines_on_stdout_while_a_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("before")
    with shown_log():
        log.info("%s of %s\n  %s", 1, 2, "more")
        print("its answer")
        assert is_log_shown()
    log.info("after")
    out, err = capsys.readouterr()
    assert (out, err) == ("1 of 2\n  more\nits answer\n", "") and not is_log_shown()


def test_nothing_is_printed_for_who_uses_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(str).say()
    assert capsys.readouterr() == ("", "")


def _tell(text: str, share: Share) -> None:
    log.info("%s%s", share.name, text)


def test_other_processes_show_what_this_one_shows(capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    import_tests_from_here(monkeypatch)
    run_shares(_tell, "unseen", 2)
    with shown_log():
        run_shares(_tell, "seen", 2)
    assert sorted(capfd.readouterr().out.splitlines()) == ["process 0: seen", "process 1: seen"]


def test_progress_speaks_every_so_often_and_counts(capsys, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    progress = Progress(lambda done: f"{done} of 9", who="process 1: ", unit="frames", seconds=20)
    with shown_log():
        for seconds in (15, 4, 2, 19):
            now[0] += seconds
            progress.add(2, ["bad"] if seconds == 4 else [])
        Progress(lambda done: f"{done} items").say()
    assert capsys.readouterr().out == "process 1: 6 of 9, 0.3 frames/s\n0 items\n"
    assert (progress.done, progress.complaints) == (8, ["bad"])


def test_the_loggers_of_the_package_lie_under_one_name() -> None:
    assert console.PACKAGE == "flexip_model"
    for path in (ROOT / "flexip_model").rglob("*.py"):
        text = Path(path).read_text(encoding="utf-8")
        assert "getLogger(" not in text or "getLogger(__name__)" in text or path.name == "console.py", path


def test_progress_with_a_total_says_how_long_the_rest_takes(capsys, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("flexip_model.common.console.time.monotonic", lambda: now[0])
    with shown_log():
        progress = Progress(lambda done: f"{done} of 8 pictures", total=8, seconds=20)
        now[0] += 30
        progress.add(2)
    assert capsys.readouterr().out == "2 of 8 pictures, 1.5 min left\n"


def test_what_an_earlier_run_did_counts_for_the_rest_and_not_for_the_speed(capsys, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("flexip_model.common.console.time.monotonic", lambda: now[0])
    with shown_log():
        progress = Progress(lambda done: f"{done} of 100", unit="items", total=100, seconds=20)
        progress.skip(88)
        now[0] += 30
        progress.add(6)
    assert capsys.readouterr().out == "94 of 100, 0.2 items/s, 0.5 min left\n"


def test_a_bar_takes_what_an_earlier_run_did_for_no_speed_either(monkeypatch) -> None:
    monkeypatch.setattr(console, "are_bars_shown", lambda: True)
    with shown_log():
        progress = Progress(str, unit="items", total=10_000)
        (bar,) = console._bars
        for _ in range(4):
            time.sleep(0.15)
            progress.skip(1000)
        for _ in range(3):
            time.sleep(0.15)
            progress.add(1)
        assert (bar.n, bar.initial) == (4003, 4000) and 1 < bar.format_dict["rate"] < 20
        progress.skip(10_000 - bar.n)
        assert not console._bars


WORK = """
import logging, time
from flexip_model.common.console import Progress, run_command
from flexip_model.common.errors import FlexIPError
log = logging.getLogger("flexip_model.somewhere")
def work():
    progress = Progress(lambda done: f"{done} of 4 things", unit="things", total=4, seconds=0.0)
    for number in range(3):
        time.sleep(0.15)
        progress.add(1)
    log.info("a remark")
    raise FlexIPError("the disk is full")
run_command(work)
"""


def _on_terminal(code: str) -> str:
    """What a terminal gets of a process whose stdout and stderr it is."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 25, 100, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    process.wait()
    os.close(ours)
    return seen.decode()


def test_a_terminal_shows_a_bar_with_the_time_left_and_messages_on_lines_of_their_own() -> None:
    shown = _on_terminal(WORK)
    assert re.search(r"75%\|█+.*\| 00:00<00:00, .*things/s, 3 of 4 things", shown), shown
    lines = [line.split("\r")[-1] for line in shown.split("\r\n")]
    assert "a remark" in lines and "error: the disk is full" in lines, lines


def test_without_a_terminal_there_is_no_bar() -> None:
    end = subprocess.run([sys.executable, "-c", WORK], cwd=ROOT, capture_output=True, text=True)
    assert end.stderr == "error: the disk is full\n"
    assert re.fullmatch(r"(\d of 4 things, \d\.\d things/s, 0\.\d min left\n){3}a remark\n", end.stdout), end.stdout
