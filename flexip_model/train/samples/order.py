"""Which sample comes when: a pure function of seed, step and rank, so that a run can be resumed at any step.

Sample numbers count up per kind of data over the whole run and over all devices. A number determines the group (by a
permutation per epoch) and everything that is drawn for it, so the same samples are seen whatever the number of devices
and loading processes (our choice, in place of saving the states of loaders).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

KINDS = ("image", "variant")


class Ticket(NamedTuple):
    """One sample to make: its kind (0 image, 1 variant), its number among that kind, and its stage."""

    kind: int
    number: int
    stage: int


class Order:
    """The order of one stage's samples.

    Args:
        counts: groups of each kind; a kind of which a batch takes none may have none.
        images: image samples in each device batch; the others are variants.
        batch: samples per device and micro-step.
        world: devices.
    """

    def __init__(self, counts: tuple[int, int], images: int, batch: int, world: int, seed: int, stage: int = 0) -> None:
        self.counts, self.batch, self.world, self.seed, self.stage = counts, batch, world, seed, stage
        self.share = (images, batch - images)
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    def tickets(self, micro_step: int, rank: int) -> list[Ticket]:
        """The batch of a device at a micro-step (both from 0): image samples first."""
        return [
            Ticket(kind, (micro_step * self.world + rank) * share + i, self.stage)
            for kind, share in enumerate(self.share)
            for i in range(share)
        ]

    def group(self, ticket: Ticket) -> int:
        """Which of its kind's groups a ticket takes: every group once per epoch, in a new order each."""
        epoch, place = divmod(ticket.number, self.counts[ticket.kind])
        key = (ticket.kind, epoch)
        if key not in self._permutations:
            for old in [k for k in self._permutations if k[0] == ticket.kind and k[1] < epoch - 1]:
                del self._permutations[old]
            rng = np.random.default_rng((self.seed, self.stage, ticket.kind, epoch))
            self._permutations[key] = rng.permutation(self.counts[ticket.kind])
        return int(self._permutations[key][place])

    def rng(self, ticket: Ticket) -> np.random.Generator:
        """What everything that a ticket's sample draws comes from."""
        return np.random.default_rng((self.seed, self.stage, 7, ticket.kind, ticket.number))


class Batches:
    """The batch sampler of one device: tickets from a micro-step to the stage's end."""

    def __init__(self, order: Order, rank: int, first: int, end: int) -> None:
        self.order, self.rank, self.first, self.end = order, rank, first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __iter__(self) -> Iterator[list[Ticket]]:
        for micro_step in range(self.first, self.end):
            yield self.order.tickets(micro_step, self.rank)
