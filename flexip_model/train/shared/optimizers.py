"""The optimizer by its name: torch's AdamW, or bitsandbytes' with moments of eight bits."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import FlexIPError

CHECKPOINT_BYTES = {"adamw": 16, "adamw8bit": 10}
"""Of a checkpoint, per weight: itself and its average in fp32, and the two moments."""
INSTEAD = "or set optimizer: adamw"


def check_optimizer(name: str) -> None:
    """Look whether an optimizer's library is installed, without importing it.

    Raises:
        FlexIPError: it is not.
    """
    if name == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise FlexIPError(
            f"optimizer: adamw8bit needs bitsandbytes, which is not installed; `pip install bitsandbytes`, {INSTEAD}"
        )


def make_optimizer(
    name: str, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], device: torch.device
) -> torch.optim.Optimizer:
    """Make an optimizer of parameter groups.

    Args:
        name: `adamw`, or `adamw8bit`, which keeps the moments of tensors of 4096 weights and more in eight bits, by
            blocks (Dettmers et al., 2022).
        device: of the parameters. The library is tried there on weights of its own, before anything depends on it.

    Raises:
        FlexIPError: bitsandbytes is not installed, or does not work here.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    check_optimizer(name)
    try:
        library: Any = importlib.import_module("bitsandbytes")
        tried = nn.Parameter(torch.zeros(1 << 13, device=device))
        tried.grad = torch.ones_like(tried)
        library.optim.AdamW8bit([tried], lr=1.0).step()
        if not bool((tried < 0).all()):
            raise RuntimeError("a step changed nothing")
        made: torch.optim.Optimizer = library.optim.AdamW8bit(groups, lr=lr, betas=betas)
    except Exception as error:  # of whatever kind the library raises: no backend, other CUDA …
        raise FlexIPError(
            f"optimizer: adamw8bit does not work on {device.type} here "
            f"({' '.join(str(error).split())[:300] or type(error).__name__}); install a bitsandbytes that does, "
            f"{INSTEAD}"
        ) from error
    return made


def unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of an optimizer's state, each with memory of its own, as a file needs them: for bitsandbytes all
    weights share one table of values."""
    found, seen = {}, set[int]()
    for name, value in state.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found


def restored(value: Tensor, device: torch.device) -> Tensor | int:
    """An entry of an optimizer's state as it was before a checkpoint held it as a tensor: bitsandbytes counts its steps
    in a plain number, torch in a tensor of float32."""
    # torch's step too goes to the device: a card's fused AdamW wants all of its state there.
    return int(value) if value.ndim == 0 and value.dtype == torch.int64 else value.to(device)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW (our choice): weights of layers decay; norms, biases, the learnable queries, tables of
    places and the gate do not."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (decay if parameter.ndim > 1 and name.endswith("weight") else plain).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
