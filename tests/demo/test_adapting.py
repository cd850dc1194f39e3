"""Adapters that are trained beside one base: the same batches for all, and ablations that lack what they say."""

from __future__ import annotations

import copy
import json
import math
from functools import partial
from math import inf
from pathlib import Path

import pytest
import torch

from flexip_model.common.errors import FlexIPError
from flexip_model.demo.evaluation.shipped import Shipped
from flexip_model.demo.making import adapting, places
from flexip_model.demo.making.adapting import Batches, before, begin_with, reads_places, references_of, stepper_of
from flexip_model.demo.making.drawing import weighted_errors
from flexip_model.demo.making.pool import Pool
from flexip_model.demo.making.reading import train_reader
from flexip_model.demo.making.run import RECORD
from flexip_model.demo.making.stepper import Pace, shares_of
from flexip_model.demo.scenes.drawn import LENGTH, REFERENCES
from flexip_model.demo.stages.kinds import CONFIGS, VARIATIONS, condition_of, new_adapter
from flexip_model.demo.stages.networks import place_waves
from flexip_model.demo.stages.queries import Keys, Places, Watched, own_cells, waves_of
from flexip_model.demo.stages.reader import Reader
from flexip_model.files.adapter_file import load_adapter_file, save_adapter
from flexip_model.hosts.condition import Condition
from flexip_model.hosts.diffusers import inject
from flexip_model.method.adapters import ReferenceFeatures
from flexip_model.method.sites import SD15_SITES

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


def _read_by(name: str, shipped: Shipped, pool: Pool, null, monkeypatch) -> dict[str, torch.Tensor]:
    """Where the [CLS] that an adapter trains from was among those of the batch, and its inputs."""
    batches = Batches(shipped.base, pool, null, 8, 1)
    batches.refill(0)
    batches.inputs["drawn"][:] = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.9, 0.6, 0.9, 0.9])
    for kind in REFERENCES:
        batches.inputs[f"{kind}_cls"].copy_(torch.arange(8.0)[:, None].expand(8, 128))
    read = {}

    def noted(adapter, variation, seen, text, variant, drawn):
        read.update(of=seen["cls"][:, 0], variant=variant)
        return condition_of(adapter, variation, seen, text, variant, drawn)

    monkeypatch.setattr(adapting, "condition_of", noted)
    stepper_of(name, shipped.base, batches, Pace(1, 8), 1)[1].step(0.0)
    return read


def test_at_small_gamma_some_references_show_something_else(shipped: Shipped, pool: Pool, null, monkeypatch) -> None:
    """Every second variant sample below γ = 0.2 reads another sample's reference; no other kind does. One in four
    samples is of the variant kind."""
    read = _read_by("flexip", shipped, pool, null, monkeypatch)
    # Sample 1 reads what lies two further up in the batch; sample 5 has γ = 0.23.
    assert read["of"].tolist() == [0, 7, 2, 3, 4, 5, 6, 7]
    assert read["variant"].tolist() == [False, True, False, False] * 2
    for name in ("flexip-no_strange", "flexip-no_gate", "flexip-images", "ip-adapter", "ip-adapter-plus"):
        assert _read_by(name, shipped, pool, null, monkeypatch)["of"].tolist() == list(range(8)), name


def test_a_reference_of_something_else_is_to_leave_the_base_alone(
    shipped: Shipped, pool: Pool, null, monkeypatch
) -> None:
    """The target of such a sample is what the base draws without a reference; those of all others stay."""
    batches = Batches(shipped.base, pool, null, 8, 1)
    batches.refill(0)
    batches.inputs["drawn"][:] = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.9, 0.6, 0.9, 0.9])
    seen, i = {}, batches.inputs

    def noted(guess, target, mask):
        seen["target"] = target
        return weighted_errors(guess, target, mask)

    with torch.no_grad():
        alone = shipped.base.unet(i["noisy"], i["steps"], i["text"]).sample
    monkeypatch.setattr(adapting, "weighted_errors", noted)
    stepper_of("flexip", shipped.base, batches, Pace(1, 8), 1)[1].step(0.0)
    torch.testing.assert_close(seen["target"][1], alone[1], rtol=1e-4, atol=1e-4)
    others = [0, 2, 3, 4, 5, 6, 7]
    assert torch.equal(seen["target"][others], i["target"][others])
    stepper_of("ip-adapter", shipped.base, batches, Pace(1, 8), 1)[1].step(0.0)
    assert torch.equal(seen["target"], i["target"])


def test_only_references_that_are_read_are_encoded() -> None:
    assert references_of(["flexip-seed1", "ip-adapter-seed2"]) == ("same", "variant")
    assert references_of(["flexip-moved_64-seed1"]) == ("same", "moved", "variant")


def test_an_adapter_goes_on_from_a_file(shipped: Shipped, pool: Pool, null, tmp_path: Path) -> None:
    batches = Batches(shipped.base, pool, null, 2, 1)
    _, weights = load_adapter_file(DEMO / "flexip_demo.safetensors")
    start = tmp_path / "flexip-seed1.safetensors"
    start.write_bytes((DEMO / "flexip_demo.safetensors").read_bytes())
    begin = partial(begin_with, path=start, taught=None)
    adapter, stepper = stepper_of("flexip", shipped.base, batches, Pace(1, 2), 1, begin)
    assert all(torch.equal(value, weights[name].float()) for name, value in adapter.state_dict().items())
    assert all(torch.equal(a, w) for a, w in zip(stepper.averaged, stepper.weights, strict=True))
    with pytest.raises(FlexIPError, match=r"is of .*'flexip'.* it can only start one of .*'ip-adapter'"):
        stepper_of("ip-adapter", shipped.base, batches, Pace(1, 2), 1, begin)


def test_a_file_tells_all_runs_that_it_went_through(tmp_path: Path) -> None:
    told = [{"steps": 3, "batch": 2}, {"steps": 5, "batch": 4}]
    info, tensors = load_adapter_file(DEMO / "flexip_demo.safetensors")
    training = {**info.training, "before": told[:1], "adapter": told[1]}
    path = tmp_path / "flexip-seed1.safetensors"
    save_adapter(path, info.config, tensors, training=training, encoders=info.encoders, title="t", license="l")
    assert before("flexip-seed1", tmp_path) == told
    assert before("flexip-seed2", tmp_path) == before("flexip-seed1", None) == []


def test_a_pool_is_read_as_it_was_written(pool: Pool, tmp_path: Path) -> None:
    pool.write(tmp_path / "pool.safetensors")
    again = Pool.read(tmp_path / "pool.safetensors", pool.pad)
    assert len(again) == len(pool) and again.pad == pool.pad
    for name in ("latents", "mask", "ids"):
        assert torch.equal(getattr(again, name), getattr(pool, name))
    assert {kind: set(of) for kind, of in again.references.items()} == {kind: set(SHAPES) for kind in REFERENCES}
    for kind, of in pool.references.items():
        assert all(torch.equal(again.references[kind][name], value) for name, value in of.items())


def test_shares_of_a_batch_have_the_gradients_of_the_whole(shipped: Shipped, pool: Pool, null) -> None:
    batches = Batches(shipped.base, pool, null, 8, 1)
    batches.refill(0)
    batches.inputs["mask"].fill_(1)  # the subject counts more in relation to the mean of what is computed at once
    found = []
    for shares in (1, 2):
        adapter, stepper = stepper_of("flexip-no_strange", shipped.base, batches, Pace(1, 8), 1, shares=shares)
        stepper.step(0.0)
        found.append((stepper.take_sums(), {n: p.grad for n, p in adapter.named_parameters()}))
    (whole, one), (parts, two) = found
    assert parts == pytest.approx(whole, rel=1e-5)
    assert {n for n, g in one.items() if g is None} == {n for n, g in two.items() if g is None}
    for name, gradient in one.items():
        if gradient is not None:
            torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    assert [shares_of(16, n) for n in (1, 2, 3, 4, 8)] == [1, 2, 2, 4, 8] and shares_of(2, 8) == 1


def test_what_was_read_is_what_an_adapter_begins_with(shipped: Shipped, pool: Pool, null, tmp_path: Path) -> None:
    reader = Reader()
    before = copy.deepcopy(reader)
    pace = Pace(inf, 4, steps=30, lr=3e-3, warmup=1, decay_from=0.2, ema=0.5)
    assert train_reader(reader, pool, pace, tmp_path, inf)
    seen = {"patches": pool.references["same"]["patches"].float(), "latents": pool.latents.float()}
    with torch.no_grad():
        one, other = (float(r.losses(**seen, mask=pool.mask.float())["looks"]) for r in (reader, before))
    assert one < 0.97 * other
    batches = Batches(shipped.base, pool, null, 2, 1)
    adapter, stepper = stepper_of("flexip", shipped.base, batches, Pace(1, 2), 1, reader.give)
    features = ReferenceFeatures(pool.references["same"]["cls"].float(), seen["patches"])
    with torch.no_grad():
        told = reader.read(adapter.preservation(features)[:, :256])[..., :4].transpose(1, 2).unflatten(2, (16, 16))
        assert torch.equal(told, reader(seen["patches"])[0])
    assert all(torch.equal(a, w) for a, w in zip(stepper.averaged, stepper.weights, strict=True))

    for training, takes in (({}, True), ({"tokens": {"steps": 1, "batch": 2}}, False)):
        path = tmp_path / "start.safetensors"
        new = new_adapter("flexip", shipped.base.unet).half().float()  # as a file has it
        save_adapter(path, new.config, new.state_dict(), training={"trained": True, **training})
        begun = new_adapter("flexip", shipped.base.unet)
        begin_with(begun, path, reader.give)
        assert torch.equal(begun.queries, reader.queries) == takes
        assert torch.equal(begun.queries, new.queries) != takes
        assert torch.equal(begun.project_text.weight, new.project_text.weight)


def test_kinds_whose_queries_have_no_place_begin_without_what_was_read() -> None:
    assert {kind for kind in (*CONFIGS, *VARIATIONS) if reads_places(kind)} == {
        "flexip", "flexip-short", "flexip-no_s", "flexip-no_cls", "flexip-no_gate", "flexip-no_strange",
        "flexip-images", "flexip-variants",
    }  # fmt: skip


def test_a_base_learns_its_places_and_draws_as_before(
    shipped: Shipped, pool: Pool, tmp_path: Path, monkeypatch
) -> None:
    """At first its pictures have no error; two shares train one network, and nothing stays in it."""
    monkeypatch.setattr(places, "shares_of", lambda batch, threads: 2)
    base = copy.deepcopy(shipped.base)
    paces = [Pace(inf, 8, steps=1, lr=1e-9, warmup=1), Pace(inf, 8, steps=25, lr=1e-3, warmup=1, ema=0.1)]
    logged = []
    for pace in paces:
        work = tmp_path / str(pace.steps)
        assert places.train_places(base, pool, pace, work, inf)
        logged += json.loads((work / "places" / RECORD).read_text())["history"]
    assert logged[0]["picture"] < 1e-6 < logged[-1]["picture"]
    assert logged[-1]["places"] < 0.85 * logged[0]["places"]
    old, new = shipped.base.unet.state_dict(), base.unet.state_dict()
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(name.startswith("up_blocks.") for name in changed)
    assert not any(module._forward_hooks for module in base.unet.modules())


def test_queries_that_hold_their_place_have_no_error(shipped: Shipped) -> None:
    told = Places(shipped.base.unet)
    with torch.no_grad():
        for read in told.read.values():
            read.weight.zero_()
            read.bias.zero_()
            read.weight[:24, :24] = torch.eye(24)
    names = {name.replace(".", "_"): name for name in (site.name for site in SD15_SITES)}
    sides = {
        names[key]: {48: 16, 128: 4 if ".1." in names[key] else 8}[read.in_features] for key, read in told.read.items()
    }
    assert {name.partition(".")[0] for name in sides} == {"up_blocks"}
    queries = {
        name: torch.zeros(1, sides.get(name, 2) ** 2, 48 if sides.get(name) == 16 else 128) for name in names.values()
    }
    assert float(told(queries).detach()) == pytest.approx(1, abs=1e-5)
    for name, side in sides.items():
        waves = waves_of(side, CPU)
        assert waves.shape == (side**2, 4 * min(6, side // 2)) and waves.mean().abs() < 1e-6
        queries[name][0, :, : waves.shape[1]] = waves
    assert float(told(queries).detach()) < 1e-9


def test_keys_that_are_found_by_their_place_have_no_error(shipped: Shipped) -> None:
    keys = Keys()
    keys.begin(shipped.base.unet)
    own = own_cells(8, CPU)
    assert own.shape == (64, 256) and torch.equal(own.sum(1), torch.ones(64))
    assert own[9].nonzero().flatten().tolist() == [34, 35, 50, 51] and own.max() == 0.25
    tokens = torch.zeros(1, 256, 128)
    name, key = "up_blocks.2.attentions.0", "up_blocks_2_attentions_0"
    queries = {"mid_block.attentions.0": torch.zeros(1, 4, 64), name: torch.zeros(1, 64, 128)}
    assert float(keys(queries, tokens).detach()) == pytest.approx(math.log(256 / 4), abs=1e-5)  # all alike
    # The row and column in each of two heads, as waves that a key of the same place has too.
    waves = place_waves(8, 16)
    tokens[0, :, :16] = waves.view(8, 1, 8, 1, 16).expand(8, 2, 8, 2, 16).reshape(256, 16)
    with torch.no_grad():
        keys.to_k[key].weight.zero_()
        for head in (0, 64):
            keys.to_k[key].weight[head : head + 16, :16] = torch.eye(16)
            queries[name][0, :, head : head + 16] = 2000 * waves
    assert float(keys(queries, tokens).detach()) < 0.1


def test_keys_learn_to_be_found(shipped: Shipped, pool: Pool, tmp_path: Path) -> None:
    reader, keys = Reader(), Keys()
    pace = Pace(inf, 2, steps=12, lr=3e-3, warmup=1, ema=0.1)
    seen = Watched(shipped.base.unet)
    with torch.no_grad():
        shipped.base.unet(torch.randn(2, 4, 16, 16), 700, torch.randn(2, 77, 128))
        tokens = reader.tokens(pool.references["same"]["patches"][:2].float())
    queries = dict(seen)
    seen.stop()
    keys.begin(shipped.base.unet)
    untrained = float(keys(queries, tokens).detach())
    assert places.train_keys(shipped.base, reader, keys, pool, pace, tmp_path, inf)
    assert float(keys(queries, tokens).detach()) < 0.97 * untrained
    adapter = new_adapter("flexip", shipped.base.unet)
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    keys.give(adapter)
    changed = {name for name, value in adapter.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.endswith("attn2.preservation.to_k.weight") for name in changed)
    assert not any(module._forward_hooks for module in shipped.base.unet.modules())
