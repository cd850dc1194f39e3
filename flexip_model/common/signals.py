"""Ctrl-C (SIGINT) and SIGTERM, as work that takes hours wants them: noted for the next safe moment, or one like the
other.

Only the main thread can change what a signal does; in another one these leave everything as it is.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

Handler = Callable[[int, FrameType | None], object]


@dataclass
class StopRequest:
    """Whether the process was asked to end.

    Attributes:
        number: the signal's number; 0 while there was none.
    """

    number: int = 0


@contextmanager
def noted_stop(*, second_ends: bool) -> Iterator[StopRequest]:
    """SIGINT and SIGTERM are noted and do nothing else; who works looks at the request between two pieces of work.

    Args:
        second_ends: whether a second signal ends the process at once, as if nothing were noted. It must not where a
            launcher passes on each signal that its terminal has sent already.
    """
    request = StopRequest()

    def note(number: int, _frame: FrameType | None) -> None:
        request.number = number
        if second_ends:
            signal.signal(number, signal.SIG_DFL)

    with _handled(note, signal.SIGINT, signal.SIGTERM):
        yield request


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    with _handled(interrupt, signal.SIGTERM):
        yield


@contextmanager
def _handled(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
