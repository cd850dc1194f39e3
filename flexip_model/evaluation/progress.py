"""How far a long command is, and how long it still takes."""

from __future__ import annotations

import sys
import time

EVERY = 2.0
"""Seconds between two lines."""


class TimeLeft:
    """A line on stderr about how much is done and how many minutes are left, from the mean of what was done so far."""

    def __init__(self, count: int, what: str, quiet: bool = False) -> None:
        self.count, self.what, self.quiet = count, what, quiet
        self.done, self.began, self.told = 0, time.monotonic(), 0.0

    def step(self, more: int) -> None:
        """Some more are done."""
        self.done += more
        now = time.monotonic()
        if self.quiet or (now - self.told < EVERY and self.done < self.count):
            return
        self.told = now
        left = (now - self.began) / max(self.done, 1) * (self.count - self.done)
        print(f"{self.done} of {self.count} {self.what}, {left / 60:.1f} min left", file=sys.stderr, flush=True)
