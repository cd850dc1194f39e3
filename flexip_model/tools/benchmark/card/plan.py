"""What is measured with which sizes: SD1.5's on a GPU, the small model's to rehearse on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

SEED = 0
GAMMAS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Plan:
    """The sizes of a check.

    Attributes:
        full: SD1.5's sizes on random weights; else the model that ships.
        models: whose parity is looked at: `demo`, the model that ships, and `sd15`.
        dtypes: of parity; `dtype` is that of the other parts.
        size: side of the pictures in pixels; `parity_size` that of `sd15` in the parity part.
        batches: rows of the UNet's batch whose steps are timed: with guidance 2 are one picture.
        repeats: steps per timed call.
        rounds: of each comparison.
        batch, train_steps, train_rounds: of the trainer; the steps are a multiple of `training.WARMUP`.
        patience: factor on the parts' limits.
        total: seconds of the whole check, all parts together.
    """

    full: bool
    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    dtype: str
    size: int
    parity_size: int
    batches: tuple[int, ...]
    repeats: int
    rounds: int
    batch: int
    train_steps: int
    train_rounds: int
    patience: float
    total: float


CARD = Plan(
    full=True,
    models=("demo", "sd15"),
    dtypes=("float32", "float16", "bfloat16"),
    dtype="float16",
    size=512,
    parity_size=256,
    batches=(2, 8),
    repeats=10,
    rounds=7,
    batch=8,
    train_steps=30,
    train_rounds=2,
    patience=1,
    total=300,
)
TINY = Plan(
    full=False,
    models=("demo",),
    dtypes=("float32", "bfloat16"),
    dtype="float32",
    size=64,
    parity_size=64,
    batches=(2,),
    repeats=2,
    rounds=3,
    batch=2,
    train_steps=5,
    train_rounds=1,
    patience=10,
    total=1200,
)
