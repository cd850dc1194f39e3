"""Ctrl-C and SIGTERM, noted or raised, and what signals do afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from flexip_model.common.signals import noted_stop, sigterm_interrupts

from ..support.paths import ROOT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with noted_stop(second_ends=False) as request:
        assert request.number == 0
        for _ in range(2):
            signal.raise_signal(number)
        assert request.number == number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_ends_the_process_where_it_is_to() -> None:
    code = (
        "import signal\nfrom flexip_model.common.signals import noted_stop\n"
        "with noted_stop(second_ends=True) as request:\n"
        "    signal.raise_signal(signal.SIGTERM)\n    print(int(request.number), flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n    print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == (["15"], -signal.SIGTERM)


def test_sigterm_raises_what_ctrl_c_raises() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with noted_stop(second_ends=True) as request, sigterm_interrupts():
            seen.append((request.number, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, before)]
