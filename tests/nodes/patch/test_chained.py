"""Attention slots that another pack, or another FlexIP, has taken before or takes after."""

import gc
import importlib

import psutil
import pytest

from ...support.comfy_rig import CLOSE, difference
from .foreign_patches import HeavyAdapter, Stacking, stack


@pytest.mark.promise(22, seed=0)
def test_another_packs_patch_before_and_after_gives_one_result(rig, figures):
    conds = rig.encode(*rig.prompts())
    alone, theirs = rig.predict(rig.apply(0.5), *conds), stack(rig.model, 0.3)
    after, before = stack(rig.apply(0.5), 0.3), rig.apply(0.5, model=theirs)
    both = rig.predict(after, *conds)
    order = difference(both, rig.predict(before, *conds))
    ours, others = difference(both, rig.predict(theirs, *conds)), difference(both, alone)
    figures.worst(22, order, "difference of the two orders")
    figures.worst(22, ours, "effect of ours", lowest=True)
    figures.worst(22, others, "effect of theirs", lowest=True)
    assert order == 0 and min(ours, others) > 1e-3


@pytest.mark.parametrize("order", ["theirs first", "ours first"])
@pytest.mark.promise(22, seed=0)
def test_what_another_pack_adds_to_a_found_patch_stays_in_its_own_model(rig, order):
    """Each run of its node clones our model and adds once more; ours, its clones and the base stay as they were."""
    conds = rig.encode(*rig.prompts())
    base = stack(rig.model, 0.3) if order == "theirs first" else rig.model
    ours = rig.apply(0.5, model=base)
    clone = ours.clone()
    models = {"base": base, "ours": ours, "clone": clone}
    before = {name: rig.predict(model, *conds) for name, model in models.items()}
    results = [rig.predict(stack(models[name], 0.2), *conds) for name in ("ours", "clone", "ours", "ours")]
    for name, model in models.items():
        assert difference(rig.predict(model, *conds), before[name]) == 0, name
    assert all(difference(result, results[0]) == 0 for result in results)
    assert difference(results[0], before["ours"]) > 1e-3
    direct = stack(rig.apply(0.5), 0.5) if order == "theirs first" else stack(rig.apply(0.5), 0.2)
    assert difference(results[0], rig.predict(direct, *conds)) <= CLOSE


@pytest.mark.promise(22, seed=0)
def test_changing_the_other_packs_model_afterwards_does_not_change_ours(rig):
    conds, theirs = rig.encode(*rig.prompts()), stack(rig.model, 0.3)
    ours = rig.apply(0.5, model=theirs)
    before = rig.predict(ours, *conds)
    for patch in theirs.model_options["transformer_options"]["patches_replace"]["attn2"].values():
        patch.add(patch.callback[0], weight=5.0)
        patch.kwargs[0]["weight"] = 7.0
    assert difference(rig.predict(ours, *conds), before) == 0


@pytest.mark.promise(22, seed=0)
def test_a_patch_set_over_ours_is_chained_too(rig):
    """Packs that put their own patch into the slots, whatever is there: both act."""
    conds = rig.encode(*rig.prompts())
    attention = importlib.import_module("comfy.ldm.modules.attention")

    def theirs(q, k, v, extra_options):
        return attention.optimized_attention(q, k, v, extra_options["n_heads"]) + 0.3 * q

    def with_theirs(model):
        model = model.clone()
        for slot in (("input", 1), ("middle", 0), ("output", 3)):
            model.set_model_attn2_replace(theirs, *slot)
        return model

    after, before = with_theirs(rig.apply(0.5)), rig.apply(0.5, model=with_theirs(rig.model))
    both = rig.predict(after, *conds)
    assert difference(both, rig.predict(before, *conds)) == 0
    assert difference(both, rig.predict(with_theirs(rig.model), *conds)) > 1e-3


def resident(make):
    """Megabytes of memory that what `make` returns takes, and that thing."""
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    made = make()
    gc.collect()
    return (process.memory_info().rss - before) / 1e6, made


@pytest.mark.promise(22, seed=0)
def test_another_packs_weights_are_never_copied(rig):
    every = [*((block, number) for block in ("input",) for number in (1, 2, 4, 5, 7, 8)), ("middle", 0)]
    theirs = stack(rig.model, 0.3, HeavyAdapter(80), [*every, *(("output", number) for number in range(3, 12))])
    rig.apply(0.5, model=theirs)  # what is loaded at the first use
    ours_after_theirs, kept = resident(lambda: [rig.apply(0.5, model=theirs) for _ in range(3)])
    assert ours_after_theirs <= 1
    clones_of_theirs, _ = resident(lambda: [theirs.clone() for _ in range(10)])
    clones_of_ours, _ = resident(lambda: [kept[0].clone() for _ in range(10)])
    assert clones_of_ours <= clones_of_theirs + 1


@pytest.mark.promise(22, seed=0)
def test_what_cannot_be_copied_is_shared(rig):
    class Stubborn(Stacking):
        def __copy__(self):
            raise TypeError("one of a kind")

        def __deepcopy__(self, memo):
            return self

    conds, model = rig.encode(*rig.prompts()), rig.model.clone()
    model.set_model_attn2_replace(Stubborn(lambda out, *a, **k: 0.1 * out), "input", 1)
    assert difference(rig.predict(rig.apply(0.5, model=model), *conds), rig.predict(rig.apply(0.5), *conds)) > 1e-4


@pytest.mark.promise(22, seed=0)
def test_a_slot_with_the_longer_key_is_chained_too(rig):
    conds, calls = rig.encode(*rig.prompts()), []
    attention = importlib.import_module("comfy.ldm.modules.attention")

    def theirs(q, k, v, extra_options):
        calls.append(1)
        return attention.optimized_attention(q, k, v, extra_options["n_heads"])

    model = rig.model.clone()
    model.set_model_attn2_replace(theirs, "input", 1, 0)
    out = rig.predict(rig.apply(0.5, model=model), *conds)
    assert calls
    assert difference(out, rig.predict(rig.apply(0.5), *conds)) <= CLOSE


@pytest.mark.promise(22, seed=0)
def test_two_applications_add_up(rig):
    conds = rig.encode(*rig.prompts())
    twice = rig.apply(1.0, model=rig.apply(0.0, strength=0.5), strength=0.5)
    assert difference(rig.predict(twice, *conds), rig.predict(rig.apply(0.5), *conds)) <= CLOSE


@pytest.mark.promise(22)
def test_a_model_has_no_plain_patch_of_ours(rig):
    """Packs go through plain patches and expect kinds that they know (Ultimate SD Upscale 1.7 stops at any other)."""
    twice = rig.apply(0.5, model=rig.apply(0.3))
    assert "patches" not in twice.model_options["transformer_options"]
    assert len(twice.model_patches_models()) == 2
