"""Attention slots that another pack, or another FlexIP, has taken before or takes after."""

import importlib
import math

from .comfy_rig import CLOSE, difference


class Stacking:
    """What IPAdapter_plus puts into a slot: callbacks whose results are added, `add` for more."""

    def __init__(self, callback, **kwargs):
        self.callbacks = [(callback, kwargs)]

    def add(self, callback, **kwargs):
        self.callbacks.append((callback, kwargs))

    def __call__(self, q, k, v, extra_options):
        attention = importlib.import_module("comfy.ldm.modules.attention")
        out = attention.optimized_attention(q, k, v, extra_options["n_heads"])
        for callback, kwargs in self.callbacks:
            out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out


def stack(model, weight):
    """IPAdapter_plus's way of patching."""
    def add_some(out, q, k, v, extra_options, weight, **kwargs):
        return weight * q

    model = model.clone()
    options = model.model_options["transformer_options"].copy()
    options["patches_replace"] = {**options.get("patches_replace", {})}
    slots = options["patches_replace"]["attn2"] = {**options["patches_replace"].get("attn2", {})}
    for key in [("input", 1), ("input", 4), ("middle", 0), ("output", 3)]:
        if key in slots:
            slots[key].add(add_some, weight=weight, sigma_start=1e9, sigma_end=0.0)
        else:
            slots[key] = Stacking(add_some, weight=weight, sigma_start=1e9, sigma_end=0.0)
    model.model_options["transformer_options"] = options
    return model


def test_another_packs_patch_before_and_after_gives_both_effects(rig):
    conds = rig.encode(*rig.prompts())
    ours, theirs = rig.apply(0.5), stack(rig.model, 0.3)
    alone = rig.predict(ours, *conds)
    after, before = stack(ours, 0.3), rig.apply(0.5, model=theirs)
    both = rig.predict(after, *conds)
    assert difference(both, rig.predict(before, *conds)) <= CLOSE
    assert difference(both, alone) > 1e-3
    assert difference(both, rig.predict(theirs, *conds)) > 1e-3
    assert difference(rig.predict(ours, *conds), alone) == 0  # `.add` on a clone leaves the original alone
    ended = rig.apply(0.5)
    for patch in ended.model_options["transformer_options"]["patches_replace"]["attn2"].values():
        patch.add(lambda out, *a, **k: out * math.nan, sigma_start=1.0, sigma_end=0.0)
    assert difference(rig.predict(ended, *conds), alone) == 0


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


def test_two_applications_add_up(rig):
    conds = rig.encode(*rig.prompts())
    twice = rig.apply(1.0, model=rig.apply(0.0, strength=0.5), strength=0.5)
    assert difference(rig.predict(twice, *conds), rig.predict(rig.apply(0.5), *conds)) <= CLOSE
