"""What a user sees while a command works: the library's log as plain lines on stdout, and lines of progress."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from .errors import FlexIPError

PACKAGE = __name__.rpartition(".common.")[0]
"""The logger above all of this package's; ComfyUI loads the package under another name than a command does."""
log = logging.getLogger(__name__)


class _Stdout(logging.StreamHandler[TextIO]):
    """Messages alone, on what stdout is when they come."""

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, _: TextIO) -> None: ...


@contextmanager
def shown_log() -> Iterator[None]:
    """Within it, what the package logs (INFO and up) is printed to stdout, each message as a line or more."""
    logger = logging.getLogger(PACKAGE)
    handler, level = _Stdout(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def run_command(command: Callable[[], object]) -> int:
    """Run a command for a user; returns the exit code: 0, 2 with one sentence on stderr for a user's mistake, 130 for
    Ctrl-C."""
    try:
        with shown_log():
            command()
    except FlexIPError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    return 0


def is_log_shown() -> bool:
    """Whether this is inside `shown_log`."""
    return any(isinstance(handler, _Stdout) for handler in logging.getLogger(PACKAGE).handlers)


class Progress:
    """A line in the log every so often, and what could not be done.

    Args:
        describe: how far the work is, from the number of things done.
        who: what each line begins with, such as the process's name (`Share.name`).
        unit: what is done, for "12.3 frames/s" at the line's end; empty for no rate.
        total: how many things there are, for the time left at the line's end; 0 for no such time.
        seconds: the least time between two lines.

    Attributes:
        done: things so far.
        complaints: sentences, one for each thing that could not be done.
    """

    def __init__(
        self, describe: Callable[[int], str], *, who: str = "", unit: str = "", total: int = 0, seconds: float = 20.0
    ) -> None:
        self.done = 0
        self.complaints: list[str] = []
        self._describe, self._who, self._unit, self._seconds = describe, who, unit, seconds
        self._total, self._started = total, time.monotonic()
        self._said = self._started

    def add(self, count: int, complaints: Iterable[str] = ()) -> None:
        """Count what was done, and say so if it is time."""
        self.done += count
        self.complaints += complaints
        if time.monotonic() - self._said > self._seconds:
            self.say()

    def say(self) -> None:
        """Log the line now."""
        self._said = time.monotonic()
        rate = self.done / max(self._said - self._started, 1e-6)
        line = f"{self._who}{self._describe(self.done)}" + (f", {rate:.1f} {self._unit}/s" if self._unit else "")
        if self._total and self.done:
            line += f", {(self._total - self.done) / rate / 60:.1f} min left"
        log.info(line)
