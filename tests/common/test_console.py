"""What a user sees: the log's messages as plain lines on stdout, in every process, and lines of progress."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flexip_model.common import console
from flexip_model.common.console import Progress, is_log_shown, shown_log
from flexip_model.common.processes import Share, run_shares

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
    monkeypatch.syspath_prepend(str(ROOT))  # the new processes import this file
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
