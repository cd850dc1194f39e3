"""Batches from loading processes; whatever goes wrong there arrives as one sentence."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ...common.errors import FlexIPError
from .batch import Batch, Sample, collate
from .sample_set import SampleSet
from .sampler import SIDES, Ticket, TicketBatchSampler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """What goes to the trainer in a batch's place.

    torch would raise the error there with a process's traceback for its text, and an error with arguments of its own
    not at all.

    Attributes:
        sentence: for the user.
        trace: where it happened, for a mistake that is the program's; else empty.
    """

    sentence: str
    trace: str = ""

    @classmethod
    def of(cls, error: Exception, what: str) -> Failure:
        """The failure that an exception is."""
        if isinstance(error, FlexIPError):
            return cls(str(error))
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(error, MemoryError):
            return cls(f"memory ran out while {what} was made; set fewer workers or a smaller batch")
        if isinstance(error, OSError):
            return cls(f"{what} could not be made ({reason}); look after what it names, then start the run again")
        return cls(
            f"{what} could not be made ({reason}), which is a mistake of this program: please report it with the lines "
            "above",
            traceback.format_exc(),
        )


class _Guarded(TorchDataset[Any]):
    def __init__(self, samples: TorchDataset[Sample]) -> None:
        self.samples = samples

    def __getitem__(self, ticket: Ticket) -> Sample | Failure:
        try:
            return self.samples[ticket]
        except Exception as error:
            return Failure.of(error, f"the {SIDES[ticket.side]} sample {ticket.number} of stage {ticket.stage + 1}")


def _collate(items: Sequence[Sample | Failure]) -> Batch | Failure:
    failures = [item for item in items if isinstance(item, Failure)]
    if failures:
        return failures[0]
    try:
        return collate([item for item in items if isinstance(item, Sample)])
    except Exception as error:
        return Failure.of(error, "a batch")


def load(samples: SampleSet, tickets: TicketBatchSampler, *, workers: int, pin: bool) -> Iterator[Batch]:
    """The batches of some tickets, in their order.

    Args:
        workers: loading processes; 0 loads in this one.
        pin: whether batches are put into pinned memory.

    Raises:
        FlexIPError: a batch that could not be made, or processes that could not be started.
    """
    loader: Any = DataLoader(
        _Guarded(samples),
        batch_sampler=tickets,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
    )
    try:
        batches = iter(loader)
    except OSError as error:
        raise FlexIPError(
            f"{workers} loading processes cannot be started ({error.strerror or error}); set fewer workers"
        ) from error
    for found in batches:
        if isinstance(found, Failure):
            if found.trace:
                log.info(found.trace)
            raise FlexIPError(found.sentence)
        yield found


def lost_process(error: RuntimeError) -> str | None:
    """The sentence for a loading process that was killed, which torch tells by a RuntimeError at any place; None for
    another error."""
    reason = str(error).splitlines()[0] if str(error) else ""
    if "DataLoader worker" not in reason and "shared memory" not in str(error):
        return None
    return (
        f"a loading process was lost ({reason}), most often for too little memory or too small a /dev/shm; set fewer "
        "workers, or workers: 0, and start the run again"
    )
