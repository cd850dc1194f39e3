"""P's queries learn to be read, from references that are the targets' own pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from ..stages.networks import ENCODER_WIDTH, GRID
from ..stages.reader import Reader
from .pool import Pool
from .run import Run
from .stepper import Pace, Stepper, one_thread_each, parameters, shares_of


def train_reader(reader: Reader, pool: Pool, pace: Pace, work: Path, deadline: float) -> bool:
    """Train the reader; False if the leg ended first."""
    device = pool.latents.device
    inputs = {
        "patches": torch.zeros(pace.batch, GRID**2, ENCODER_WIDTH, device=device),
        "latents": torch.zeros(pace.batch, 4, GRID, GRID, device=device),
        "mask": torch.zeros(pace.batch, GRID, GRID, device=device),
    }
    reader.requires_grad_(True).train()
    found = {"patches": pool.references["same"]["patches"], "latents": pool.latents, "mask": pool.mask}

    def refill(_turn: int) -> None:
        picked = torch.randint(len(pool), (pace.batch,), device=device)
        for name, value in found.items():
            inputs[name].copy_(value[picked])

    with one_thread_each(device) as threads:
        shares = [lambda i: reader.losses(**i)] * shares_of(pace.batch, threads)
        stepper = Stepper(parameters(reader), shares[0], inputs, pace, also=shares[1:])
        done = Run("tokens", work, {"tokens": stepper}, refill, pace=pace, deadline=deadline).go()
    if done:
        stepper.use_average()
    return done
