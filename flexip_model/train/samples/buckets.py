"""Batches whose targets keep their proportions: each of one size, with its exact share of either side of the gate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...images.buckets import Size, bucket_sizes, nearest
from ..configs.options import TrainConfig
from .groups import Groups
from .sampler import SIDES, Ticket, TicketSampler

ROUND = 1024
"""Micro-steps after which every bucket has had its part of them exactly (our choice)."""
OFTEN = 4
"""How much more often than its side's others a group may come for the other side's sake (our choice)."""

Members = tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]
"""For either side, the groups of each bucket."""


class BucketSampler(TicketSampler):
    """As `TicketSampler`, but all samples of a micro-step, on all devices, are of one bucket.

    A sample's number counts up within its bucket, so that what it is depends on nothing that came before it. Other than
    there, another number of devices gives the same samples only where they make the same micro-step together.

    Args:
        sizes: of the buckets.
        members: every bucket has a group on each side of which a batch takes any.

    Attributes:
        quotas: (buckets,) how many of `ROUND` micro-steps each has: its part of the groups of either side, weighed as
            the batch is.
    """

    def __init__(
        self,
        sizes: Sequence[Size],
        members: Members,
        *,
        images: int,
        batch: int,
        world_size: int,
        seed: int,
        stage: int,
    ) -> None:
        counts = (sum(map(len, members[0])), sum(map(len, members[1])))
        super().__init__(counts, images=images, batch=batch, world_size=world_size, seed=seed, stage=stage)
        self.sizes, self.members = tuple(sizes), members
        self.quotas = _quotas(_parts(np.array([[len(groups) for groups in side] for side in members]), self.share))
        self._round = (-1, np.zeros(0, np.int64))

    def tickets(self, micro_step: int, rank: int) -> list[Ticket]:
        """The batch of a rank at a micro-step (both from 0), of one bucket: image samples first."""
        past, place = divmod(micro_step, ROUND)
        if self._round[0] != past:
            rng = np.random.default_rng((self.seed, self.stage, 11, past))
            self._round = (past, rng.permutation(np.repeat(np.arange(len(self.quotas)), self.quotas)))
        order = self._round[1]
        bucket = int(order[place])
        turn = past * int(self.quotas[bucket]) + int(np.count_nonzero(order[:place] == bucket))
        return [
            Ticket(side, (turn * self.world_size + rank) * share + i, self.stage, bucket)
            for side, share in enumerate(self.share)
            for i in range(share)
        ]

    def group(self, ticket: Ticket) -> int:
        """Which of its side's groups a ticket takes: every group of its bucket once before any comes again."""
        members = self.members[ticket.side][ticket.bucket]
        return int(members[self._shuffled(ticket.number, len(members), ticket.side, 1 + ticket.bucket)])

    def rng(self, ticket: Ticket) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.stage, 7, ticket.side, ticket.number, 1 + ticket.bucket))

    def describe(self) -> str:
        """The buckets and their groups, for people."""
        found = []
        for number, (width, height) in enumerate(self.sizes):
            held = " and ".join(
                f"{len(side[number]):,} {name}"
                for side, name, share in zip(self.members, SIDES, self.share, strict=True)
                if share
            )
            found.append(f"{width}×{height} ({held} groups, {self.quotas[number] / ROUND:.1%} of the steps)")
        return f"targets in {len(found)} size{'s' * (len(found) > 1)}: {', '.join(found)}"


def make_sampler(config: TrainConfig, groups: Groups, stage: int, world_size: int) -> TicketSampler:
    """The order of a stage's samples, by the config. Where it has buckets, one is left out whose part is less than one
    in `ROUND` micro-steps, or of which a side has so few groups that they would come more than `OFTEN` times as often
    as that side's others: its groups go to the nearest of the others."""
    images = round(config.batch * config.image_share)
    share = (images, config.batch - images)
    if config.buckets is None:
        return TicketSampler(
            groups.counts, images=images, batch=config.batch, world_size=world_size, seed=config.seed, stage=stage
        )
    sizes = bucket_sizes(config.size, config.buckets.step, config.buckets.limit)
    targets = [groups.target_sizes(side) for side in range(2)]
    while True:
        found = [nearest(sizes, wanted) for wanted in targets]
        counts = np.array([np.bincount(places, minlength=len(sizes)) for places in found])
        parts = _parts(counts, share)
        own = [count / max(1, count.sum()) for need, count in zip(share, counts, strict=True) if need]
        left_out = np.logical_or.reduce([*(part * OFTEN < parts for part in own), parts < 1 / ROUND])
        if not left_out.any() or len(sizes) == 1:
            break
        sizes.pop(int(np.where(left_out, parts, np.inf).argmin()))
    order = [np.split(np.argsort(p, kind="stable"), np.cumsum(c)[:-1]) for p, c in zip(found, counts, strict=True)]
    sampler = BucketSampler(
        sizes,
        (order[0], order[1]),
        images=images,
        batch=config.batch,
        world_size=world_size,
        seed=config.seed,
        stage=stage,
    )
    groups.remarks.append(sampler.describe())
    return sampler


def _quotas(parts: NDArray[np.float64]) -> NDArray[np.int64]:
    """`ROUND` shared out by `parts`, whose sum is 1, by largest remainder."""
    exact = parts / parts.sum() * ROUND
    given: NDArray[np.int64] = exact.astype(np.int64)
    given[np.argsort(given - exact, kind="stable")[: ROUND - given.sum()]] += 1
    return given


def _parts(counts: NDArray[np.int64], share: tuple[int, int]) -> NDArray[np.float64]:
    """Each bucket's part of the groups of either side, weighed as the batch is.

    Args:
        counts: (2, buckets), groups of each side.
        share: samples of each side in a batch.
    """
    found: NDArray[np.float64] = np.zeros(counts.shape[1])
    for need, count in zip(share, counts, strict=True):
        found += need / sum(share) * count / max(1, count.sum())
    return found
