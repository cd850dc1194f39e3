"""Which sample comes when: a pure function of seed, step and rank, so that a run can be resumed at any step.

Sample numbers count up on each side of the gate over the whole run and over all ranks. A number determines the group
(by a permutation per epoch) and everything that is drawn for it, so the same samples are seen whatever the number of
devices and loading processes (our choice, in place of saving the states of loaders).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

SIDES = ("image", "variant")
"""The two sides of the gate (Eq. 5), by the name of their samples: γ = α, and γ = 1 − β."""


class Ticket(NamedTuple):
    """One sample to make: its side (0 image, 1 variant), its number on that side, its stage, and the bucket that its
    target's size is (`BucketSampler`), all from 0."""

    side: int
    number: int
    stage: int
    bucket: int = 0


class TicketSampler:
    """The order of one stage's samples.

    Args:
        counts: groups on each side; a side of which a batch takes none may have none.
        images: image samples in each device batch; the others are variants.
        batch: samples per device and micro-step.
        world_size: devices.
        seed, stage: decide, with a ticket's side and number, everything that is drawn for it.
    """

    def __init__(
        self, counts: tuple[int, int], *, images: int, batch: int, world_size: int, seed: int, stage: int = 0
    ) -> None:
        self.counts, self.batch, self.world_size, self.seed, self.stage = counts, batch, world_size, seed, stage
        self.share = (images, batch - images)
        self._permutations: dict[tuple[int, ...], dict[int, np.ndarray]] = {}

    def tickets(self, micro_step: int, rank: int) -> list[Ticket]:
        """The batch of a rank at a micro-step (both from 0): image samples first."""
        return [
            Ticket(side, (micro_step * self.world_size + rank) * share + i, self.stage)
            for side, share in enumerate(self.share)
            for i in range(share)
        ]

    def group(self, ticket: Ticket) -> int:
        """Which of its side's groups a ticket takes: every group once per epoch, in a new order each."""
        return self._shuffled(ticket.number, self.counts[ticket.side], ticket.side)

    def _shuffled(self, number: int, count: int, side: int, *bucket: int) -> int:
        """The place, below `count`, that a number falls on: all of them once per epoch, in a new order each."""
        epoch, place = divmod(number, count)
        key = (side, *bucket)
        orders = self._permutations.setdefault(key, {})
        if epoch not in orders:
            for old in [known for known in orders if known < epoch - 1]:
                del orders[old]
            orders[epoch] = np.random.default_rng((self.seed, self.stage, side, epoch, *bucket)).permutation(count)
        return int(orders[epoch][place])

    def rng(self, ticket: Ticket) -> np.random.Generator:
        """A new generator, which a ticket's sample draws everything from."""
        return np.random.default_rng((self.seed, self.stage, 7, ticket.side, ticket.number))


class TicketBatchSampler(Sampler[list[Ticket]]):
    """The batch sampler of one rank: its tickets from the micro-step `first` to `end`, which is not included."""

    def __init__(self, sampler: TicketSampler, *, rank: int, first: int, end: int) -> None:
        self.sampler, self.rank, self.first, self.end = sampler, rank, first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __iter__(self) -> Iterator[list[Ticket]]:
        for micro_step in range(self.first, self.end):
            yield self.sampler.tickets(micro_step, self.rank)
