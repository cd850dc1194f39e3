"""Work shared out over processes: `--processes N` on this machine, or those that torchrun or accelerate started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .errors import FlexIPError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


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
    members = [
        context.Process(target=_member, args=(work, task, Share(rank, processes, rank), errors))
        for rank in range(processes)
    ]
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
        raise FlexIPError(
            f"{len(failed)} of {processes} processes ended before their work was done (exit code "
            f"{failed[0]}; −9 is often too little memory); what is finished is kept, run the same "
            "command again"
        )


def check_parent() -> None:
    """End this process quietly when the one that started it is gone (kill −9), so that it never outlives it."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)


def ahead(load: Callable[[T], R], items: Sequence[T], batch: int, threads: int) -> Iterator[list[R]]:
    """`load` of every item in batches, in order; the next batch loads in threads while the caller is at this one."""
    batches = [items[start : start + batch] for start in range(0, len(items), batch)]
    with ThreadPoolExecutor(threads) as pool:
        coming = [pool.submit(load, item) for item in batches[0]] if batches else []
        for following in [*batches[1:], []]:
            now, coming = coming, [pool.submit(load, item) for item in following]
            if now:
                yield [job.result() for job in now]


def pick_device(name: str, local: int = 0) -> torch.device:
    """`auto`, `cpu`, `cuda` or a device that torch knows; of several GPUs the one of this process.

    Raises:
        FlexIPError: torch does not know it, or does not see it.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{local % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise FlexIPError(
            f"the device {name} cannot be used ({str(error).splitlines()[0]}); choose auto, cpu or cuda"
        ) from error
    return device


def _member(work: Callable[[Any, Share], None], task: Any, share: Share, errors: Any) -> None:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // share.world))
    try:
        work(task, share)
    except FlexIPError as error:
        errors.put(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
