"""Samples per second of the trainer, with and without caches, against the loop that people use today."""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...common.errors import FlexIPError
from ...train.configs.options import TrainConfig
from ...train.configs.read import load_config
from ...train.configs.sections import TrainStage
from ...train.samples.sample_set import SampleSet
from ...train.trainer import Trainer
from ..example_data import DEMO, cache, write_base, write_data
from .plain_loop import run_plain
from .timing import Row

WARMUP = 5
"""Steps before the clock starts, and between two entries of the trainer's log."""


@dataclass(frozen=True)
class Contender:
    """One of the three, with what each round measured.

    Attributes:
        name: for the table.
        run: trains once; samples per second and share of time without a batch.
        speeds, waits: a value per round.
        memory: highest allocated GPU memory in bytes; 0 on the CPU.
    """

    name: str
    run: Callable[[], tuple[float, float]]
    speeds: list[float]
    waits: list[float]
    memory: list[int]


SWITCHES = {
    "compile": (True, False),
    "gradient_checkpointing": (False, True),
    "compile and gradient_checkpointing": (True, True),
}
"""The config's two switches that buy speed and memory, `compile` first: each alone and both."""


def switches(config: TrainConfig, steps: int, rounds: int) -> list[Row]:
    """Train with the config's two switches off, with each alone and with both in turn, `rounds` times, all with caches.

    Args:
        config, steps: as of `training`. Compiling falls into the `WARMUP`.

    Raises:
        FlexIPError: the caches do not fit the config.
    """
    off = replace(config, compile=False, gradient_checkpointing=False)
    made = [contender("neither", lambda: run_ours(off, steps, use_cache=True))]
    for name, (compiled, checkpointed) in SWITCHES.items():
        switched = replace(off, compile=compiled, gradient_checkpointing=checkpointed)
        made.append(contender(name, partial(run_ours, switched, steps, use_cache=True)))
    for number in range(rounds):
        for one in made if number % 2 == 0 else reversed(made):
            measure(one)
    neither, *others = made
    label = f"training at {config.size} px, batch {config.batch}"
    rows = [against(f"{label}, {one.name}, against {neither.name}", one, neither, "") for one in others]
    return rows + _memory(made)


def training(config: TrainConfig, steps: int, rounds: int) -> list[Row]:
    """Train with each of the three in turn, `rounds` times, the order swapped each round.

    Args:
        config: data with caches of latents and [CLS].
        steps: that are timed, of each run; a multiple of `WARMUP`.

    Raises:
        FlexIPError: the caches do not fit the config.
    """
    plain = contender("plain loop", lambda: run_plain(config, WARMUP, steps))
    uncached = contender("without caches", lambda: run_ours(config, steps, use_cache=False))
    cached = contender("cached latents and [CLS]", lambda: run_ours(config, steps, use_cache=True))
    for number in range(rounds):
        order = [cached, uncached, plain]
        for one in order if number % 2 == 0 else reversed(order):
            measure(one)
    label = f"training at {config.size} px, batch {config.batch}"
    rows = [
        against(f"{label}, {ours.name}, against a {plain.name}", ours, plain, goal)
        for ours, goal in ((uncached, ""), (cached, "≥ 1.8"))
    ]
    for one in (plain, uncached, cached):
        share = statistics.median(one.waits) * 100
        rows.append(Row(f"share of time without a batch, {one.name}", share, None, None, None, "%"))
    return rows + _memory([plain, uncached, cached])


def prepare_training(folder: Path, options: Any) -> TrainConfig:
    """The config to measure with; data, caches and (at SD1.5's sizes) random weights are made in `folder`.

    Args:
        options: of the command line; `model`, `batch`, `size`, `workers` and the paths may be None.

    Raises:
        FlexIPError: only some of --base, --clip and --dino are given, or a path is not what it should be.
    """
    paths = {name: getattr(options, name) for name in ("base", "clip", "dino")}
    given = [name for name, value in paths.items() if value is not None]
    if given and len(given) < len(paths):
        raise FlexIPError("give all of --base, --clip and --dino, or none for weights that the benchmark makes")
    cuda = torch.cuda.is_available()
    model = options.model or ("sd15" if cuda or given else "demo")
    values: dict[str, Any] = {
        "precision": "bf16" if cuda else "fp32",
        "accumulation": 1,
        "preview_every": 0,
        "start": None,
        "warmup": 0,
    }
    if given:
        values |= {name: str(Path(value).absolute()) for name, value in paths.items()}
    elif model == "sd15":
        values |= write_base(folder)
    for name in ("size", "batch", "workers"):
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    data = folder / "data" if options.data is None else Path(options.data).absolute()
    values |= {"data": [str(data)], "output": str(folder)}
    config = load_config("demo" if model == "demo" else "one_card", values)
    if options.data is None:
        write_data(data, config.size, images=3 * config.batch, variants=2 * config.batch)
        cache(config)
    return config


def model_name(config: TrainConfig) -> str:
    """What is trained, for the table's heading."""
    if Path(config.base) == DEMO:
        return "the demo model"
    return "SD1.5's shapes on random weights" if Path(config.base).name == "sd15_random" else config.base


class _Timed(Trainer):
    """The trainer, which at the end of a measurement has nothing to keep."""

    def save(self) -> None:
        """Keep nothing."""

    def _stage(self, samples: SampleSet, begun: int, stage: TrainStage) -> None:
        first = samples[samples.sampler.tickets(0, 0)[0]]
        if self.config.use_cache and (first.latents is None or first.reference.cls is None):
            raise FlexIPError(
                f"the data has no caches of latents and [CLS] that fit: {'; '.join(samples.groups.remarks)}"
            )
        super()._stage(samples, begun, stage)


def run_ours(config: TrainConfig, steps: int, use_cache: bool) -> tuple[float, float]:
    """Train with the trainer for `WARMUP` and `steps` steps; nothing is kept.

    Returns:
        Samples per second, and the share of time in which the device had no batch.
    """
    with tempfile.TemporaryDirectory() as folder:
        _Timed(
            replace(config, output=folder, use_cache=use_cache, stages=(TrainStage(WARMUP + steps),), log_every=WARMUP)
        ).run()
        lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    timed = [json.loads(line) for line in lines][1:]
    # Entries are of equal numbers of samples: the mean speed is the harmonic one, shares of time weigh by time.
    seconds = [1 / entry["samples_per_second"] for entry in timed]
    waited = [entry["waiting_share"] * spent for entry, spent in zip(timed, seconds, strict=True)]
    return statistics.harmonic_mean([entry["samples_per_second"] for entry in timed]), sum(waited) / sum(seconds)


def contender(name: str, run: Callable[[], tuple[float, float]]) -> Contender:
    """One with nothing measured yet."""
    return Contender(name, run, [], [], [])


def measure(contender: Contender) -> None:
    """Train once more, and keep what was measured; what is printed goes to stderr."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with contextlib.redirect_stdout(sys.stderr):
        print(f"== {contender.name}")
        speed, waited = contender.run()
    contender.speeds.append(speed)
    contender.waits.append(waited)
    contender.memory.append(torch.cuda.max_memory_allocated() if cuda else 0)
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()


def _memory(contenders: Sequence[Contender]) -> list[Row]:
    """What was allocated at most, where that is known."""
    return [
        Row(f"GPU memory, {c.name}", max(c.memory) / 2**30, None, None, None, "GiB")
        for c in contenders
        if max(c.memory)
    ]


def against(what: str, ours: Contender, baseline: Contender, goal: str) -> Row:
    ratios = [a / b for a, b in zip(ours.speeds, baseline.speeds, strict=True)]
    a, b = statistics.median(ours.speeds), statistics.median(baseline.speeds)
    return Row(what, a, b, statistics.median(ratios), (min(ratios), max(ratios)), "samples/s", goal)
