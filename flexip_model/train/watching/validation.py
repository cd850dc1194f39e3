"""The validation loss: the training's error on groups that it never sees, always the same ones with the same noise.

The loss of training itself says little: each step draws other subjects, noise and noise levels, and their spread is
many times what an hour of training changes. Here only the weights differ from one time to the next.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from ...common.errors import FlexIPError
from ...files.safefile import atomic
from ..configs.options import TrainConfig
from ..configs.sections import ConditioningDropout
from ..frozen import Frozen
from ..samples.batch import collate
from ..samples.groups import Groups
from ..samples.sample_set import SampleSet
from ..samples.sampler import SIDES, Ticket, TicketSampler
from ..shared import state
from ..step import TrainStep

GAMMAS = (0.0, 0.5, 1.0)
"""The gate's γ that are measured: both ends of the dial and its middle, which the paper never trains (Eq. 5)."""
SEED, STAGE = 0, 1 << 20
"""Of what is drawn: not the run's own, so that runs with other seeds can be compared; no stage has this number."""
BEST = "best.json"


class Validation:
    """The groups of the split `val`, with what is drawn for them.

    Args:
        config: the run's; nothing is dropped of the conditioning.

    Attributes:
        counts: groups on either side of the gate, as many as are measured.
    """

    def __init__(self, config: TrainConfig, frozen: Frozen) -> None:
        self.config = replace(config, dropout=ConditioningDropout(0.0, 0.0, 0.0))
        groups = Groups.open(self.config, frozen, "any", "val")
        sampler = TicketSampler(groups.counts, images=1, batch=config.batch, world_size=1, seed=SEED, stage=STAGE)
        self._samples = SampleSet(self.config, groups, sampler, frozen)
        self.counts = tuple(min(config.validation.groups, count) for count in groups.counts)

    @torch.no_grad()
    def measure(self, step: TrainStep, device: torch.device) -> dict[str, float]:
        """The mean error by side of the gate and γ, as `validation/image/gamma_0`, and the mean of these as
        `validation/all`.

        Args:
            step: whose adapter is measured.

        Raises:
            FlexIPError: too many groups cannot be read.
        """
        values: dict[str, float] = {}
        levels = self._samples.num_train_timesteps
        for side, count in enumerate(self.counts):
            sums = dict.fromkeys(GAMMAS, 0.0)
            for first in range(0, count, self.config.batch):
                numbers = range(first, min(first + self.config.batch, count))
                # Noise levels evenly over all there are: drawn ones would need many more groups for the same spread.
                samples = [
                    replace(self._samples[Ticket(side, n, STAGE)], timestep=int((n + 0.5) / count * levels))
                    for n in numbers
                ]
                batch = collate(samples).to(device)
                for gamma in GAMMAS:
                    sums[gamma] += float(step(batch, gamma).sum())
            if count:
                values |= {f"validation/{SIDES[side]}/gamma_{g:g}": total / count for g, total in sums.items()}
        if values:
            values["validation/all"] = sum(values.values()) / len(values)
        return values


def read_best(checkpoints: Path) -> tuple[int, float] | None:
    """The step of the best checkpoint so far and its `validation/all`; None where none is marked or it is gone."""
    try:
        found = json.loads((checkpoints / BEST).read_text(encoding="utf-8"))
        step, loss = int(found["step"]), float(found["validation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (step, loss) if step in state.list_steps(checkpoints) else None


def mark_best(checkpoints: Path, step: int, loss: float) -> None:
    """Mark a checkpoint as the best so far.

    Raises:
        FlexIPError: the mark cannot be written.
    """
    if step not in state.list_steps(checkpoints):
        raise FlexIPError(f"there is no checkpoint of step {step} to mark in {checkpoints}")
    with atomic(checkpoints / BEST) as temporary:
        temporary.write_text(json.dumps({"step": step, "validation": loss}) + "\n", encoding="utf-8")
