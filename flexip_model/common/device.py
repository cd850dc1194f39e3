"""The device that a command computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import FlexIPError

if TYPE_CHECKING:
    import torch


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of this name: `auto`, `cpu`, `cuda` or another that torch knows.

    `auto` takes a GPU where there is one. Of several GPUs each process of a machine takes its own, by `local_rank`.

    Raises:
        FlexIPError: torch does not know it, or does not see it.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise FlexIPError(
            f"the device {name} cannot be used ({str(error).splitlines()[0]}); choose auto, cpu or cuda"
        ) from error
    return device
