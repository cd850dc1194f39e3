"""A training stage in several processes of this machine, with averaged gradients."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from .processes import start_members


def run(target: Callable[[], None], processes: int, seed: int) -> None:
    """Call `target` in each of `processes` processes; all begin with the same torch seed.

    `target` must be picklable; the cores are shared out as threads. With one process it is called right here.

    Raises:
        FlexIPError: what `target` raised; a process that was killed or left.
    """
    import torch

    if processes == 1:
        torch.manual_seed(seed)
        target()
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_members(_join_group, processes, port, target, seed, together=True)


def _join_group(rank: int, processes: int, port: int, target: Callable[[], None], seed: int) -> None:
    import torch
    import torch.distributed as distributed

    threads = max(1, (os.cpu_count() or 1) // processes)
    # What accelerate reads, as torchrun would set it.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": str(threads),
    }
    torch.set_num_threads(threads)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    torch.manual_seed(seed)
    target()
    distributed.destroy_process_group()
