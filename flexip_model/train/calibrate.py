"""The dial, a calibration curve from a user's γ to the gate's, so that the picture changes over all of it (our choice).

What a trained adapter makes of the gate's γ is uneven: a little P is read at once, and beyond some γ more of it changes
few pixels. So after training the sweep of some subjects is measured at many γ, finely near 0, and the table of the
inverse goes into the adapter's file (`FlexIPConfig.dial`). 0 stays 0 and 1 stays 1; what lies between is only shared
out anew: half of a turn by the change of the picture, half by the gate itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..common.errors import FlexIPError
from ..method.adapters import FlexIPAdapter
from .configs.options import TrainConfig
from .frozen import load_frozen, pick_dtype
from .preview import sweep
from .samples.sample_set import open_samples

log = logging.getLogger(__name__)

GATES = tuple((k / 28) ** 2 for k in range(29))
"""The γ that are measured: near 0, where most changes, close together."""
POINTS = 20
"""Straight pieces of the dial."""
_AT_ONCE = 8
"""Pictures in a batch, so that a card that trained the adapter also measures it."""


def calibration_curve(changes: Sequence[Sequence[float]] | Tensor, gates: Sequence[float] = GATES) -> tuple[float, ...]:
    """The dial of measured sweeps.

    The way from 0 to a gate's value is the mean of that value and of the picture's change up to it, as a share of all
    of its change. By the picture alone, most of the gate, where the prompt's style gives way to the reference's with
    little change of pixels, lay in the dial's last quarter; by the gate alone, most of the change in its first tenth.
    In the mean no turn moves either more than twice as far as the average turn does.

    Args:
        changes: per subject, how much the picture changes from each of `gates` to the next, (n, len(gates) - 1).
            Every subject counts the same, however much its picture changes in all.

    Returns:
        `POINTS` + 1 values of the gate, from 0 to 1.

    Raises:
        FlexIPError: no subject's picture changes at all.
    """
    table = np.asarray(changes, np.float64)
    table = table[table.sum(1) > 0]
    if not len(table):
        raise FlexIPError("no picture changes with γ, so there is no dial to calibrate; is the adapter trained?")
    share = (table / table.sum(1, keepdims=True)).mean(0)
    way = (np.concatenate([[0.0], np.cumsum(share)]) + np.asarray(gates)) / 2
    values = np.interp(np.linspace(0, 1, POINTS + 1), way, gates)
    values[0], values[-1] = 0.0, 1.0
    return tuple(round(float(v), 5) for v in values)


def picture_changes(pictures: Tensor) -> list[float]:
    """(n, 3, H, W) in [0, 1] → n - 1 mean absolute differences between neighbors."""
    return (pictures[1:] - pictures[:-1]).abs().mean((1, 2, 3)).tolist()


def calibrate(config: TrainConfig, adapter: FlexIPAdapter, subjects: int) -> tuple[float, ...]:
    """Measure the dial of a trained adapter on the first validation subjects of a run's data (of the training split
    where there are none), each with its own caption, all γ from one noise.

    Args:
        config: the run's; base, encoders, data and `dial` are read.
        adapter: without a dial of its own.

    Raises:
        FlexIPError: the data hold no subjects, or as `load_frozen` and `calibration_curve`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frozen = load_frozen(config)
    found = open_samples(config, frozen, 0, 1).preview(subjects)
    if found is None:
        raise FlexIPError(f"{', '.join(config.data)} hold no subjects to calibrate the dial on")
    frozen.to(device, pick_dtype(config.precision))
    adapter.to(device)
    changes = []
    for number in range(len(found.references)):
        parts = [
            sweep(
                found,
                number,
                GATES[i : i + _AT_ONCE],
                frozen=frozen,
                adapter=adapter,
                config=config,
                steps=config.dial.steps,
                guidance=config.dial.guidance,
            )
            for i in range(0, len(GATES), _AT_ONCE)
        ]
        changes.append(picture_changes(torch.cat(parts)))
        log.info(f"calibrating the dial: subject {number + 1} of {len(found.references)}")
    return calibration_curve(changes)
