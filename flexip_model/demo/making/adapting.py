"""Adapters beside the finished, frozen base: all of them on the same batches, in turn on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import FlexIPError
from ...files.adapter_file import load_adapter_file
from ...hosts.diffusers import FlexIPHost, inject
from ...method.adapters import Adapter
from ...train.configs.sections import ConditioningDropout
from ..scenes.words import LENGTH as TEXT_LENGTH
from ..stages.base import Base
from ..stages.kinds import (
    SECOND,
    VARIANTS,
    VARIATIONS,
    Variation,
    condition_of,
    kind_and_seed,
    new_adapter,
    strangers,
)
from ..stages.networks import GRID, TEXT_WIDTH
from .drawing import Noise, weighted_errors
from .pool import Pool
from .run import Run
from .stepper import Pace, Stepper, Tensors, one_thread_each, parameters, shares_of, twins

TOKENS = "tokens"
"""Of an adapter's training: how its way to P's queries was trained before."""
ABLATED = 0.4
"""Share of the time in which the ablations train."""


class Batches:
    """One seed's batches: the inputs that all adapters of the seed read. A turn's batch is always the same."""

    def __init__(self, base: Base, pool: Pool, null: dict[str, Tensor], batch: int, seed: int) -> None:
        device = pool.latents.device
        self.base, self.pool, self.null, self.batch = base, pool, null, batch
        self.seed, self.generator = seed, torch.Generator(device)
        self._noise, self._dropout = Noise(device), ConditioningDropout()

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(batch, *shape, device=device, dtype=dtype)

        self.variant = torch.zeros(batch, dtype=torch.bool, device=device)
        self.variant[VARIANTS] = True
        self.inputs = {
            "noisy": zeros(4, 16, 16),
            "target": zeros(4, 16, 16),
            "steps": zeros(dtype=torch.long),
            "mask": zeros(16, 16),
            "text": zeros(TEXT_LENGTH, TEXT_WIDTH),
            "drawn": zeros(),
            **{
                f"{kind}_{name}": zeros(*value.shape[1:])
                for kind, of in pool.references.items()
                for name, value in of.items()
            },
        }

    @torch.no_grad()
    def refill(self, turn: int) -> None:
        """Draw the batch of a turn."""
        device, pool, inputs = self.pool.latents.device, self.pool, self.inputs
        self.generator.manual_seed(self.seed * 1_000_003 + turn)  # the CPU's reads 32 bits of it
        picked = torch.randint(len(pool), (self.batch,), device=device, generator=self.generator)
        noisy, target, steps = self._noise(pool.latents[picked].float(), self.generator)
        dropped = torch.rand(self.batch, device=device, generator=self.generator)
        no_image, no_text = self._drop(dropped)
        text = self.base.read(pool.prompts(picked, no_text, TEXT_LENGTH, self.generator))
        found = {"noisy": noisy, "target": target, "steps": steps, "text": text, "mask": pool.mask[picked]}
        found["drawn"] = torch.rand(self.batch, device=device, generator=self.generator)
        for kind, of in pool.references.items():
            for name, value in of.items():
                seen = value[picked].float()
                gone = no_image.view(-1, *[1] * (seen.ndim - 1))
                found[f"{kind}_{name}"] = torch.where(gone, self.null[name], seen)
        for name, value in found.items():
            inputs[name].copy_(value)

    def _drop(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """`ConditioningDropout.drop` on the device."""
        image, text, both = self._dropout.image, self._dropout.text, self._dropout.both
        both_gone = (drawn >= image + text) & (drawn < image + text + both)
        return (drawn < image) | both_gone, ((drawn >= image) & (drawn < image + text)) | both_gone


def stepper_of(
    name: str,
    base: Base,
    batches: Batches,
    pace: Pace,
    seed: int,
    begin: Callable[[Any], None] | None = None,
    shares: int = 1,
) -> tuple[Adapter, Stepper]:
    """A new adapter of a name of `kinds`, and how it trains.

    Args:
        begin: gives the adapter what it begins from.
        shares: of a batch that a processor computes at once; see `Stepper`.

    Raises:
        FlexIPError: of `begin`.
    """
    torch.manual_seed(seed)
    device = batches.pool.latents.device
    variation = VARIATIONS.get(name, Variation())
    adapter = new_adapter(name, base.unet)
    if begin is not None:
        begin(adapter)
    adapter.to(device)
    same = "moved" if variation.moved else "same"
    strangely = adapter.has_personalization and variation.strange

    def loss_of(unet: nn.Module, host: FlexIPHost, i: Tensors) -> Tensors:
        variant = batches.variant[: len(i["drawn"])]
        if not (variation.image and variation.variant):
            variant = torch.full_like(variant, variation.variant)
        seen = {}
        strange = strangers(variant, i["drawn"]) & strangely
        for part in batches.null:
            one, other = i[f"{same}_{part}"], i[f"variant_{part}"]
            rows = (-1, *[1] * (one.ndim - 1))
            other = torch.where(strange.view(rows), other.roll(2, 0), other)
            seen[part] = torch.where(variant.view(rows), other, one)
        target = _targets(unet, host, i, strange) if strangely else i["target"]
        host.condition = condition_of(adapter, variation, seen, i["text"], variant, i["drawn"])
        error = weighted_errors(unet(i["noisy"], i["steps"], i["text"]).sample, target, i["mask"])
        of_variants = (error * variant).sum() / variant.sum().clamp(min=1)
        of_images = (error * ~variant).sum() / (~variant).sum().clamp(min=1)
        return {"loss": error.mean(), "image": of_images, "variant": of_variants}

    base.unet.requires_grad_(False).eval()
    loss, *also = (partial(loss_of, unet, inject(unet, adapter)) for unet in twins(base.unet, shares))
    return adapter, Stepper(parameters(adapter), loss, batches.inputs, pace, also=also)


@torch.no_grad()
def _targets(unet: nn.Module, host: FlexIPHost, i: Tensors, strange: Tensor) -> Tensor:
    """A batch's targets; where the reference shows something else, it is what the base draws without it (our choice):
    S then learns to leave the base alone, rather than to draw in its place what the true target shows."""
    host.condition = None
    drawn = unet(i["noisy"][SECOND], i["steps"][SECOND], i["text"][SECOND]).sample
    target = i["target"].clone()
    target[SECOND] = torch.where(strange[SECOND, None, None, None], drawn.to(target.dtype), target[SECOND])
    return target


def _start_of(name: str, start: Path | None) -> Path | None:
    path = None if start is None else start / f"{name}.safetensors"
    return path if path is not None and path.exists() else None


def before(name: str, start: Path | None) -> list[dict[str, int]]:
    """Steps and batch of every run that an adapter's file in `start` went through, the first run first."""
    path = _start_of(name, start)
    if path is None:
        return []
    told = load_adapter_file(path)[0].training
    return [*told.get("before", []), told["adapter"]]


def begin_with(adapter: Any, path: Path | None, taught: Callable[[Any], None] | None) -> None:
    """Give an adapter the weights of a file, and what was trained of P before where the file tells of none of it.

    Raises:
        FlexIPError: the file is of another kind or size.
    """
    has_it = path is not None and _begin_from(adapter, path).get(TOKENS)
    if taught is not None and not has_it:
        taught(adapter)


def _begin_from(adapter: Adapter, path: Path) -> dict[str, Any]:
    info, tensors = load_adapter_file(path)
    if replace(info.config, dial=()) != adapter.config:
        raise FlexIPError(f"{path} is of {info.config}; it can only start one of {adapter.config}")
    adapter.load_state_dict(tensors)
    return info.training


def train_adapters(
    base: Base,
    pool: Pool,
    null: dict[str, Tensor],
    *,
    wanted: Sequence[str],
    pace: Pace,
    work: Path,
    name: str,
    deadline: float,
    start: Path | None = None,
    taught: Callable[[Any], None] | None = None,
) -> dict[str, Adapter] | None:
    """Train adapters named KIND-seedN; the ablations end at `ABLATED` of the time. None if the leg ended first.

    Args:
        null: the features of no reference, one row each.
        name: of the run in `work`.
        start: a folder; an adapter whose file lies there begins from it.
        taught: gives adapters of FlexIP the way to P's queries, and P's keys, that were trained before, where they have
            as many queries in the same places.
    """
    seeds = sorted({kind_and_seed(one)[1] for one in wanted})
    base.requires_grad_(False).eval()
    if pool.latents.device.type == "cuda":
        base.unet.to(memory_format=torch.channels_last)
    with one_thread_each(base.unet.device) as threads:
        batches = {seed: Batches(base, pool, null, pace.batch, seed) for seed in seeds}
        adapters, steppers = {}, {}
        for one in wanted:
            kind, seed = kind_and_seed(one)
            own = replace(pace, until=ABLATED if ablated(kind) else 1.0)
            begin = partial(begin_with, path=_start_of(one, start), taught=taught if reads_places(kind) else None)
            adapters[one], steppers[one] = stepper_of(
                kind, base, batches[seed], own, seed, begin, shares_of(pace.batch, threads)
            )

        def refill(turn: int) -> None:
            for of in batches.values():
                of.refill(turn)

        if not Run(name, work, steppers, refill, pace=pace, deadline=deadline).go():
            return None
    for one, stepper in steppers.items():
        stepper.use_average()
        adapters[one].eval()
    return adapters


def references_of(wanted: Sequence[str]) -> tuple[str, ...]:
    """The kinds of references that adapters of these names read, and the reader."""
    moved = [VARIATIONS.get(kind_and_seed(name)[0], Variation()).moved for name in wanted]
    return ("same", *(["moved"] if any(moved) else []), "variant")


def reads_places(kind: str) -> bool:
    """Whether a kind has a query for every place, and references that show the subject where the target has it."""
    variation = VARIATIONS.get(kind)
    return variation is not None and variation.queries == GRID**2 and variation.learned and not variation.moved


def ablated(kind: str) -> bool:
    """Whether a kind is one of the ablations."""
    return kind in VARIATIONS and kind != "flexip" and not VARIATIONS[kind].moved
