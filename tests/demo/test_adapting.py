"""Adapters that are trained beside one base: the same batches for all, and ablations that lack what they say."""

from __future__ import annotations

import pytest
import torch

from flexip_model.demo.evaluation.shipped import Shipped
from flexip_model.demo.making.adapting import Batches, stepper_of
from flexip_model.demo.making.pool import Pool
from flexip_model.demo.making.stepper import Pace
from flexip_model.demo.scenes.drawn import LENGTH, REFERENCES
from flexip_model.demo.stages.kinds import CONFIGS, VARIATIONS, condition_of, new_adapter
from flexip_model.hosts.condition import Condition
from flexip_model.hosts.diffusers import inject

from ..support.paths import SHIPPED as DEMO

CPU = torch.device("cpu")
SHAPES = {"cls": (128,), "hidden": (50, 128), "patches": (256, 128)}


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    return Shipped(DEMO, CPU)


def _features(count: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(count, *shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def pool() -> Pool:
    torch.manual_seed(0)
    ids = torch.randint(5, 90, (12, 4, LENGTH), dtype=torch.int16)
    return Pool(
        torch.randn(12, 4, 16, 16).half(),
        torch.rand(12, 16, 16).half(),
        ids,
        1913,
        {kind: {name: value.half() for name, value in _features(12).items()} for kind in REFERENCES},
    )


@pytest.fixture(scope="module")
def null() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1, *shape) for name, shape in SHAPES.items()}


def test_a_seed_and_turn_have_one_batch_whatever_else_is_drawn(shipped: Shipped, pool: Pool, null) -> None:
    def batch(seed: int, turn: int) -> dict[str, torch.Tensor]:
        batches = Batches(shipped.base, pool, null, 4, seed)
        torch.rand(turn + 1)  # another adapter's, from the common generator
        batches.refill(turn)
        return batches.inputs

    one, again, later, other = batch(1, 5), batch(1, 5), batch(1, 6), batch(2, 5)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    for different in (later, other):
        assert not torch.equal(one["noisy"], different["noisy"])
    assert (one["steps"] >= 0).all() and (one["steps"] < 1000).all()
    latents = {tuple(value.flatten().tolist()) for value in one["same_cls"]}
    assert latents <= {tuple(v.flatten().tolist()) for v in (*pool.references["same"]["cls"].float(), null["cls"][0])}


def test_all_kinds_read_the_same_batches(shipped: Shipped, pool: Pool, null) -> None:
    batches = Batches(shipped.base, pool, null, 4, 1)
    for name in CONFIGS:
        _, stepper = stepper_of(name, shipped.base, batches, Pace(1, 4), 1)
        assert stepper.inputs is batches.inputs


def _condition(shipped: Shipped, name: str) -> tuple[Condition, torch.nn.Module]:
    torch.manual_seed(0)
    adapter = new_adapter(name, shipped.base.unet)
    variant, drawn = torch.tensor([False, True]), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        found = condition_of(adapter, VARIATIONS[name], _features(2), torch.randn(2, 77, 128), variant, drawn)
    return found, adapter


def test_ablations_lack_the_tokens_and_the_gate_that_they_are_named_after(shipped: Shipped) -> None:
    tokens = {name: _condition(shipped, name)[0] for name in VARIATIONS}
    whole = tokens["flexip"]
    assert whole.preservation.shape[1] == 257 and len(set(whole.gamma.flatten().tolist())) == 2
    assert torch.equal(tokens["flexip-no_cls"].preservation, whole.preservation[:, :-1])
    assert torch.equal(tokens["flexip-no_queries"].preservation, whole.preservation[:, -1:])
    assert (tokens["flexip-no_gate"].gamma == 0.5).all()
    assert tokens["flexip-moved_16"].preservation.shape[1] == 17


def test_without_s_nothing_of_s_is_added_before_or_after_training(shipped: Shipped, pool: Pool, null) -> None:
    batches = Batches(shipped.base, pool, null, 2, 1)
    batches.refill(0)
    found = {}
    for name in ("flexip", "flexip-no_s"):
        adapter, stepper = stepper_of(name, shipped.base, batches, Pace(1, 2, lr=1e-2, warmup=1), 1)
        stepper.step(0.0)
        unet = shipped.base.unet
        host = inject(unet, adapter)
        i = batches.inputs
        drawn = []
        for s in (torch.zeros(2, 77, 128), torch.randn(2, 77, 128)):
            host.condition = Condition(torch.zeros(2, 257, 128), s, torch.full((2, 1, 1), 0.2))
            with torch.no_grad():
                drawn.append(unet(i["noisy"], i["steps"], i["text"]).sample)
        host.eject()
        found[name] = float((drawn[0] - drawn[1]).abs().max())
    assert found["flexip-no_s"] == 0 < found["flexip"]


def test_ablations_of_a_kind_of_sample_see_none_of_it(shipped: Shipped, pool: Pool, null) -> None:
    batches = Batches(shipped.base, pool, null, 2, 1)
    batches.refill(0)
    for name, gone in (("flexip-images", "variant"), ("flexip-variants", "image")):
        _, stepper = stepper_of(name, shipped.base, batches, Pace(1, 2), 1)
        stepper.step(0.0)
        sums = stepper.take_sums()
        assert sums[gone] == 0 < sums["loss"]
