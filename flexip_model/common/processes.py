"""Work shared out over processes: `--processes N` on this machine, or those that torchrun or accelerate started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from .console import are_bars_shown, is_log_shown, share_terminal, shown_log
from .errors import FlexIPError
from .parent import end_with_parent

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue


class Share(NamedTuple):
    """Which part of the work a process does: items `rank`, `rank + world_size`, …

    Attributes:
        rank: the process's number among all, from 0.
        world_size: how many processes there are.
        local_rank: its number on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def name(self) -> str:
        """How a line begins that one of several processes prints; empty for a process alone."""
        return f"process {self.rank}: " if self.world_size > 1 else ""


def given_share() -> Share:
    """The share that torchrun, accelerate or a cluster's own script tells by RANK, WORLD_SIZE and LOCAL_RANK.

    Raises:
        FlexIPError: these are no numbers, or the rank is outside the world.
    """
    try:
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        share = Share(rank, world_size, int(os.environ.get("LOCAL_RANK", rank)))
    except ValueError as error:
        raise FlexIPError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers ({error})") from error
    if not 0 <= share.rank < share.world_size:
        raise FlexIPError(f"RANK is {share.rank} and WORLD_SIZE {share.world_size}; expected 0 ≤ RANK < WORLD_SIZE")
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
    if share.world_size > 1:
        raise FlexIPError("--processes cannot be used under torchrun or accelerate launch, which start the processes")
    start_members(_work_on_share, processes, work, task)


def _work_on_share(rank: int, processes: int, work: Callable[[Any, Share], None], task: Any) -> None:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    work(task, Share(rank, processes, rank))


def start_members(member: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Call `member(rank, processes, *arguments)` in `processes` new processes and wait for all of them.

    None of them outlives this call, nor this process. (`torch.multiprocessing.spawn` ends the others at any failure,
    with warnings, and takes a process that Ctrl-C ended for one that has done its work.)

    Args:
        member: a module's function.
        arguments: picklable.

    Raises:
        FlexIPError: what a member raised; a member that was killed, or ended with an exit code.
    """
    import multiprocessing
    from multiprocessing.connection import wait

    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    terminal = context.RLock() if are_bars_shown() else None
    members = [
        context.Process(target=_member, args=(member, rank, processes, arguments, errors, is_log_shown(), terminal))
        for rank in range(processes)
    ]
    failed: list[int] = []
    try:
        for process in members:
            process.start()
        running = list(members)
        while running:
            wait([process.sentinel for process in running])
            ended = [process for process in running if not process.is_alive()]
            failed += [process.exitcode for process in ended if process.exitcode]
            running = [process for process in running if process not in ended]
    finally:
        for process in members:
            if process.is_alive():
                process.terminate()
                process.join()
    if not errors.empty():
        raise FlexIPError(errors.get())
    if failed:
        raise FlexIPError(
            f"{len(failed)} of {processes} processes ended before their work was done (exit code "
            f"{failed[0]}; −9 is often too little memory); what is finished is kept, run the same "
            "command again"
        )


def _member(
    member: Callable[..., None],
    rank: int,
    processes: int,
    arguments: tuple[Any, ...],
    errors: SimpleQueue[str],
    show_log: bool,
    terminal: Any,
) -> None:
    end_with_parent()
    if terminal is not None:
        share_terminal(terminal)
    try:
        with shown_log() if show_log else nullcontext():
            member(rank, processes, *arguments)
    except FlexIPError as error:
        errors.put(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
