"""What a user sees while a command works: the library's log as plain lines on stdout, and how far the work is."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

from .errors import FlexIPError

if TYPE_CHECKING:
    from tqdm import tqdm

PACKAGE = __name__.rpartition(".common.")[0]
"""The logger above all of this package's; ComfyUI loads the package under another name than a command does."""
log = logging.getLogger(__name__)
BAR = "{l_bar}{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}"
_bars: list[tqdm[Any]] = []
"""The bars that stand on the terminal now."""


class _Stdout(logging.StreamHandler[TextIO]):
    """Messages alone, on what stdout is when they come."""

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, _: TextIO) -> None: ...

    def emit(self, record: logging.LogRecord) -> None:
        with _bars[0].external_write_mode() if _bars else nullcontext():
            super().emit(record)


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
        while _bars:  # of work that an error ended
            _bars.pop().close()
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


def are_bars_shown() -> bool:
    """Whether progress is a bar: while the log is shown, and on a terminal."""
    return is_log_shown() and sys.stderr.isatty()


def share_terminal(lock: Any) -> None:
    """Let this process's bars take turns with those of others that have the same lock (a multiprocessing RLock)."""
    from tqdm import tqdm

    tqdm.set_lock(lock)


class Progress:
    """How far the work is, and what could not be done: a bar on a terminal, else a line in the log every so often.

    The bar is tqdm's, on stderr; it stands there until all is done or `shown_log` ends.

    Args:
        describe: how far the work is, from the number of things done.
        who: what each line begins with, such as the process's name (`Share.name`).
        unit: what is done, for "12.3 frames/s" at the line's end; empty for no rate.
        total: how many things there are, for the time left; 0 for no such time, and no bar.
        seconds: the least time between two lines.
        place: which line of the terminal is this process's, from 0 (`Share.local_rank`).

    Attributes:
        done: things so far.
        complaints: sentences, one for each thing that could not be done.
    """

    def __init__(
        self,
        describe: Callable[[int], str],
        *,
        who: str = "",
        unit: str = "",
        total: int = 0,
        seconds: float = 20.0,
        place: int = 0,
    ) -> None:
        self.done = 0
        self.complaints: list[str] = []
        self._describe, self._who, self._unit, self._seconds = describe, who, unit, seconds
        self._total, self._started, self._before = total, time.monotonic(), 0
        self._said = self._started
        self._bar = _new_bar(total, unit, who, place) if total and are_bars_shown() else None

    def skip(self, count: int) -> None:
        """Count what an earlier run has done, which says nothing about this one's speed."""
        self.done += count
        self._before += count
        if self._bar is not None:
            for counter in ("n", "initial", "last_print_n"):  # by `update` tqdm would take it for speed
                setattr(self._bar, counter, getattr(self._bar, counter) + count)
            self._move_bar(self._bar, 0)

    def add(self, count: int, complaints: Iterable[str] = ()) -> None:
        """Count what was done, and show it if it is time."""
        self.done += count
        self.complaints += complaints
        if self._bar is not None:
            self._move_bar(self._bar, count)
        elif time.monotonic() - self._said > self._seconds:
            self.say()

    def say(self) -> None:
        """Log the line now."""
        self._said = time.monotonic()
        rate = (self.done - self._before) / max(self._said - self._started, 1e-6)
        line = f"{self._who}{self._describe(self.done)}" + (f", {rate:.1f} {self._unit}/s" if self._unit else "")
        if rate and self._total > self.done:
            line += f", {(self._total - self.done) / rate / 60:.1f} min left"
        log.info(line)

    def _move_bar(self, bar: tqdm[Any], count: int) -> None:
        bar.set_postfix_str(self._describe(self.done), refresh=False)
        bar.update(count)
        if self.done >= self._total and bar in _bars:
            bar.close()
            _bars.remove(bar)


def _new_bar(total: int, unit: str, who: str, place: int) -> tqdm[Any]:
    from tqdm import tqdm

    bar = tqdm(
        total=total,
        desc=who.rstrip(": ") or None,
        unit=f" {unit}" if unit else "",
        bar_format=BAR,
        position=place,
        leave=None,  # the first process's alone, below which the log goes on
        miniters=1,
        dynamic_ncols=True,
        file=sys.stderr,
    )
    _bars.append(bar)
    return bar
