"""What a long run takes, computed from what was counted and measured and from stated inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .arithmetic import Arithmetic
from .on_disk import FRAMES_IN_A_VARIANT, OnDisk

PAPER_GROUPS, PAPER_VARIANTS = 12_000_000, 1_232_150
"""Instances of Table 3, rounded (12.33 M; 12.23 M in §4.1), and the sum of its rows that are not single pictures."""
PAPER_SAMPLES = (100_000 + 40_000) * 16 * 8
"""Appendix B.1: steps, batch per device, devices."""
LATENT_BYTES, CLS_BYTES, DINO_BYTES = 4 * 64 * 64 * 2, 1024 * 2, 256 * 1024 * 2
"""Bytes of one tensor in a cache, float16, at 512 px."""
PICTURE_BYTES = 250_000
"""A JPEG of quality 95 with a shorter side of 640 px, with its mask; assumed."""
CONTEXT_BYTES = 2e9
"""What CUDA and its libraries take of a card beside tensors; assumed."""
PACKERS = (16, 32)
"""Machines and cores of each that share `data pack` out in the table."""
READS = 2.5
"""Reads of pictures and masks per sample without caches: target and reference, a mask every other time."""


@dataclass(frozen=True)
class Card:
    """A kind of GPU.

    Attributes:
        name: for the table.
        memory: GB.
        peak: dense bf16 TFLOP/s with fp32 sums, from its data sheet.
        utilization: share of the peak that training reaches; assumed, not measured.
        price: USD per hour; assumed.
        speed: measured samples per second with caches, which then stands for peak and utilization; 0 if not measured.
    """

    name: str
    memory: float
    peak: float
    utilization: float
    price: float
    speed: float = 0.0

    def rate(self, gmac: float, cached: float) -> float:
        """Samples per second at `gmac` per sample; `cached` is what the measured speed belongs to."""
        if self.speed:
            return self.speed * cached / gmac
        return self.peak * 1e12 * self.utilization / (2e9 * gmac)


UTILIZATION = 0.35
CARDS = {
    "rtx4090": Card("RTX 4090", 24, 165, UTILIZATION, 0.40),
    "a100": Card("A100 80 GB", 80, 312, UTILIZATION, 1.50),
}


@dataclass(frozen=True)
class TrainingRun:
    """A run to estimate.

    Attributes:
        name: for the table.
        card: key of `CARDS`.
        cards: how many, eight to a machine.
        batch: samples per card and micro-step.
        accumulation: micro-steps per step.
        samples: all in all.
        groups, variants: of the data; how many of the groups have several frames.
    """

    name: str
    card: str
    cards: int
    batch: int
    accumulation: int
    samples: int
    groups: int
    variants: int

    @property
    def frames(self) -> int:
        return self.groups - self.variants + self.variants * FRAMES_IN_A_VARIANT


TRAINING_RUNS = (
    TrainingRun("useful", "rtx4090", 1, 8, 8, 1_280_000, 200_000, 100_000),
    TrainingRun("paper, 8 cards", "a100", 8, 16, 1, PAPER_SAMPLES, PAPER_GROUPS, PAPER_VARIANTS),
    TrainingRun("paper, 64 cards, batch 128", "a100", 64, 2, 1, PAPER_SAMPLES, PAPER_GROUPS, PAPER_VARIANTS),
    TrainingRun("paper, 64 cards, batch 1,024", "a100", 64, 16, 1, PAPER_SAMPLES, PAPER_GROUPS, PAPER_VARIANTS),
)


@dataclass(frozen=True)
class Estimate:
    """What a run takes; times in hours, sizes in bytes, rates per second.

    Attributes:
        steps: optimizer steps.
        uncached, cached, caching: time of training without caches, with them, and of making them.
        cost: USD of the cheaper way.
        memory: of a card, its tensors and `CONTEXT_BYTES`.
        pictures, latents, cls, dino, index, mapped: storage; `mapped` is the index as processes map it.
        loaders: loading processes of all machines together that keep the cards busy without caches.
        reads, read_bytes: of all machines together, without caches.
        traffic: bytes that a card sends per step for its gradients.
        network: bytes per second and card that hide them behind half of a step, the backward.
        packing: time of `data pack` on one core.
    """

    steps: float
    uncached: float
    cached: float
    caching: float
    cost: float
    memory: float
    pictures: float
    latents: float
    cls: float
    dino: float
    index: float
    mapped: float
    loaders: int
    reads: float
    read_bytes: float
    traffic: float
    network: float
    packing: float


def estimate(run: TrainingRun, card: Card, sample: Arithmetic, disk: OnDisk) -> Estimate:
    """Compute a run; all formulae of `docs/scale.md` are here."""
    slow, fast = (card.rate(gmac, sample.cached) * run.cards for gmac in (sample.uncached, sample.cached))
    once = disk.passes["latents"] * sample.vae + disk.passes["clip"] * sample.clip
    uncached, cached = run.samples / slow / 3600, run.samples / fast / 3600
    caching = run.frames / (card.rate(once, sample.cached) * run.cards) / 3600

    def stored(kind: str, one: int) -> float:
        return run.frames * disk.passes[kind] * (one + disk.header)

    traffic = 2 * (run.cards - 1) / run.cards * 4 * sample.trainable
    step = run.batch * run.accumulation * run.cards / slow
    single = run.groups - run.variants
    return Estimate(
        steps=run.samples / (run.batch * run.accumulation * run.cards),
        uncached=uncached,
        cached=cached,
        caching=caching,
        cost=min(uncached, cached + caching) * run.cards * card.price,
        memory=tensors_bytes(sample.trainable, sample.frozen, sample.activations, run.batch, run.cards) + CONTEXT_BYTES,
        pictures=run.frames * PICTURE_BYTES,
        latents=stored("latents", LATENT_BYTES),
        cls=stored("clip", CLS_BYTES),
        dino=stored("dino", DINO_BYTES),
        index=single * disk.parquet + run.variants * disk.variant_parquet,
        mapped=single * disk.arrow + run.variants * disk.variant_arrow,
        loaders=math.ceil(slow / disk.loader),
        reads=slow * READS,
        read_bytes=slow * 2 * PICTURE_BYTES,
        traffic=traffic,
        network=traffic / (step / 2),
        packing=(single * disk.pack_picture + run.variants * disk.pack_video) / 3600,
    )


def tensors_bytes(trainable: int, frozen: int, activations: int, batch: int, cards: int = 1) -> float:
    """Bytes that the tensors of a training take on each of `cards` cards, at `batch` samples a card; a lower bound.

    Args:
        trainable, frozen: parameters.
        activations: bytes that a sample keeps for the backward.
    """
    # Weights, gradients, two moments and the averages in fp32; autocast's bf16 copy; buckets of gradients in DDP.
    trained = trainable * (5 * 4 + 2 + (4 if cards > 1 else 0))
    return frozen * 2 + trained + batch * activations
