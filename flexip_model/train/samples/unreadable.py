"""Groups that could not be read: said when they are met, and the end of a run where they are too many."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ...common.errors import FlexIPError

log = logging.getLogger(__name__)
NAMED = 5
"""Places that are named one by one; after them the number is said each time it has doubled."""
FEW = 10
"""Groups that never end a run, whatever their share (our choice)."""


class Unreadable:
    """What one process of a run has said of unreadable groups."""

    def __init__(self) -> None:
        self.last = ""
        self._named: set[str] = set()
        self._next = 2 * NAMED

    def met(self, complaints: Sequence[str], unreadable: int, seen: int, share: float) -> None:
        """Say what a batch's samples met.

        Args:
            complaints: why groups could not be read, of this process's batch.
            unreadable: how many there were so far in all processes.
            seen: samples so far in all processes; every one of them was made in the end.
            share: the largest share of unreadable ones among all groups that were tried.

        Raises:
            FlexIPError: it is above `share`.
        """
        tried = seen + unreadable
        for sentence in complaints:
            self.last = sentence
            if len(self._named) < NAMED and sentence not in self._named:
                self._named.add(sentence)
                log.warning(f"left out, another group takes its place: {sentence}")
        if complaints and unreadable >= self._next:
            self._next = 2 * unreadable
            log.warning(f"{unreadable} of {tried} groups could not be read so far, the last: {self.last}")
        if unreadable > max(FEW, share * tried):
            last = f", the last: {self.last}" if self.last else ""
            raise FlexIPError(
                f"{unreadable} of {tried} groups that were tried could not be read, more than {share:.1%}{last}; run "
                "`python -m flexip_model data validate` on the data, or raise bad_share"
            )
