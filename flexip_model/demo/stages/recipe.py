"""What the small model is made from: pictures, groups, and a plan for each trained stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The pace of a stage (see `train.loop.Pace`); `batch` is of one process, `seed` of the pictures that it draws."""

    steps: int
    batch: int
    lr: float = 1e-3
    warmup: int = 100
    decay_from: float = 0.0
    ema: float = 0.998
    seed: int = 0
    log_every: int = 50
    save_every: int = 100
    keep: int = 2
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: str = "cosine"
    clip_norm: float = 1.0
    accumulation: int = 1


PLANS = {
    "vae": Plan(3000, 8, lr=5e-4, warmup=60, decay_from=0.4, seed=11),
    "clip": Plan(640, 64, warmup=20, ema=0.99, log_every=25, seed=21),
    "dino": Plan(2000, 24, warmup=20, ema=0.99, log_every=25, decay_from=0.3, seed=22),
    "names": Plan(500, 96, warmup=20, ema=0.99, log_every=25, decay_from=0.3, seed=24),
    "base": Plan(30000, 16, lr=8e-4, warmup=200, decay_from=0.4, ema=0.999, seed=25, save_every=250),
    "tokens": Plan(1000, 32, warmup=60, decay_from=0.3, seed=26),
    "together": Plan(8000, 16, lr=8e-4, warmup=60, decay_from=0.5, seed=31),
}
"""Batches are of each of two processes; longer is better for `base` and `together`."""
ADAPTER_STEPS = 120
"""Steps of the last stage, whose plan is the trainer's config `demo`."""
PICTURES = 20480
"""Composed and encoded once, for `tokens` and `together`."""
LESSONS = 12288
"""Composed and encoded once, for `base`."""
GROUPS = 1024
"""Groups in the data folder that the trainer reads."""
CALIBRATED = 32
"""Trained subjects on which the dial is measured."""
SEED = 1
"""Seed of the initial weights."""
