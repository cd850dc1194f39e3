"""Work shared out over processes: `--processes N` on this machine, or those that torchrun or accelerate started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import FlexIPError


class Share(NamedTuple):
    """Which part of the work a process does: items `rank`, `rank + world`, …; `local` is its number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0


def given_share() -> Share:
    """The share that torchrun, accelerate or a cluster's own script tells by RANK, WORLD_SIZE and LOCAL_RANK.

    Raises:
        FlexIPError: these are no numbers, or the rank is outside the world.
    """
    try:
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        share = Share(rank, world, int(os.environ.get("LOCAL_RANK", rank)))
    except ValueError as error:
        raise FlexIPError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers ({error})") from error
    if not 0 <= share.rank < share.world:
        raise FlexIPError(f"RANK is {share.rank} and WORLD_SIZE {share.world}; expected 0 ≤ RANK < WORLD_SIZE")
    return share


def run_shares(work: Callable[[Any, Share], None], task: Any, processes: int) -> None:
    """Call `work(task, share)` in `processes` new processes, or right here with the given share.

    Args:
        work: a module's function.
        task: picklable.

    Raises:
        FlexIPError: what `work` raised; a process that was killed; `processes` under torchrun.
    """
    share = given_share()
    if processes == 1:
        work(task, share)
        return
    if share.world > 1:
        raise FlexIPError("--processes cannot be used under torchrun or accelerate launch, which start the processes")
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    members = [context.Process(target=_member, args=(work, task, Share(rank, processes, rank), errors))
               for rank in range(processes)]
    try:
        for member in members:
            member.start()
        for member in members:
            member.join()
    finally:
        for member in members:
            if member.is_alive():
                member.terminate()
                member.join()
    if not errors.empty():
        raise FlexIPError(errors.get())
    failed = [member.exitcode for member in members if member.exitcode]
    if failed:
        raise FlexIPError(f"{len(failed)} of {processes} processes ended before their work was done (exit code "
                          f"{failed[0]}; −9 is often too little memory); what is finished is kept, run the same "
                          "command again")


def check_parent() -> None:
    """End this process quietly when the one that started it is gone (kill −9), so that it never outlives it."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)


def _member(work: Callable[[Any, Share], None], task: Any, share: Share, errors: Any) -> None:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // share.world))
    try:
        work(task, share)
    except FlexIPError as error:
        errors.put(str(error))
        sys.exit(2)
