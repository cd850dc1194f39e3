"""Packs that repeat, cut or reorder rows, and packs that run the model in a way of their own: FlexIP acts as the graph
says, or says that it does not.
"""

import importlib
import itertools

import pytest
import torch

from ...support.comfy_rig import CLOSE, difference
from . import other_packs
from .test_beside_others import sample


def apart(pictures, others):
    """The largest difference, as a part of the largest value."""
    return difference([pictures], [others]) / float(others.abs().max())


def two_pieces(rig):
    """A positive prompt of two entries, so that the batch has three conds; and a negative."""
    first, negative = rig.prompts()
    second = [[rig.text(77, 9), {"mask": torch.ones(1, 64, 64), "strength": 0.5}]]
    return rig.encode(first + second, negative)


@pytest.mark.promise(31, seed=0)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", ["theirs first", "ours first"])
def test_tiles_in_one_batch_are_the_tiles_one_by_one(rig, gamma, order):
    def run(together):
        if order == "theirs first":
            model = rig.apply(gamma, model=other_packs.tiled(rig.model, together))
        else:
            model = other_packs.tiled(rig.apply(gamma), together)
        return sample(rig, model, two_pieces(rig), batch=2)

    assert apart(run(2), run(1)) <= CLOSE
    assert apart(run(2), sample(rig, other_packs.tiled(rig.model, 2), two_pieces(rig), batch=2)) > 1e-2


@pytest.mark.promise(31, seed=0)
def test_tiles_of_a_sweep_keep_their_gammas(rig):
    gammas = [0.0, 0.4, 1.0]
    sweep = sample(rig, other_packs.tiled(rig.apply(gammas), 2), two_pieces(rig), batch=3)
    for gamma, picture in zip(gammas, sweep, strict=True):
        alone = sample(rig, other_packs.tiled(rig.apply(gamma), 1), two_pieces(rig))
        assert apart(picture[None], alone) <= CLOSE


@pytest.mark.promise(30, seed=0)
def test_frames_in_another_packs_windows_keep_prompt_gamma_and_mask(rig):
    """Prompt travel: a text for each frame; windows in an order that no arithmetic would guess."""
    frames = 6
    positive, negative = [[rig.text(77, 5, batch=frames), {}]], [[rig.text(77, 6), {}]]
    masks = torch.linspace(1, 0.2, frames)[:, None, None].expand(frames, 8, 8)
    conds = rig.encode(positive, negative)
    gammas = torch.linspace(0, 1, frames).tolist()
    for settings in ({}, {"attention_mask": masks}, {"gamma_map": masks}):
        model = rig.apply(gammas if settings else 0.3, **settings)
        whole = sample(rig, model, conds, batch=frames)
        parts = sample(rig, other_packs.windowed(model, [[0, 1, 5], [4, 2], [3]]), conds, batch=frames)
        assert apart(parts, whole) <= CLOSE
        assert all(apart(a, b) > 1e-3 for a, b in itertools.pairwise(whole))


@pytest.mark.promise(28, seed=0)
@pytest.mark.parametrize("order", ["theirs first", "ours first"])
@pytest.mark.parametrize("batch", [1, 2])
def test_prompts_for_regions_inside_the_layer_keep_the_subject(rig, order, batch):
    """With the prompt's own text as a region, the couple is no change at all, with FlexIP as without."""
    conds, text = rig.encode(*rig.prompts()), rig.text(77, 5)
    gammas = [0.2, 0.9][:batch] if batch > 1 else 0.5

    def run(regions, strength=1.0):
        def couple(model):
            return other_packs.coupled(model, regions) if regions else model

        if order == "theirs first":
            return sample(rig, rig.apply(gammas, model=couple(rig.model), strength=strength), conds, batch=batch)
        return sample(rig, couple(rig.apply(gammas, strength=strength)), conds, batch=batch)

    plain = run([])
    assert max(apart(run([text]), plain), apart(run([text, text]), plain)) <= CLOSE
    other = run([rig.text(77, 30)])
    assert apart(other, plain) > 1e-3
    assert apart(other, run([rig.text(77, 30)], strength=0.0)) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_told_apart_in_every_dtype(rig, dtype):
    step = object.__new__(rig.part("nodes.patch.run").Step)
    step.rows, step.context = 600, None
    step.asked = [lambda q, k, v, options: (q.repeat_interleave(2, 0), k, v)]
    site = rig.part("flexip_model.method.sites").SD15_SITES[0]
    assert step.sources(torch.zeros(1200, 2, 4, dtype=dtype), site, {}) == [row // 2 for row in range(1200)]


@pytest.mark.promise(28, seed=0)
def test_rows_that_nobody_can_name_are_refused(rig):
    model = other_packs.coupled(rig.apply(0.5), [rig.text(77, 5)], split=False)
    with pytest.raises(ValueError, match="3 rows and FlexIP's tokens 2, and no node says which"):
        sample(rig, model, rig.encode(*rig.prompts()))


@pytest.mark.promise(28, seed=0)
def test_rows_without_their_conditioning_are_refused(rig):
    model = rig.apply(0.5)

    def doubled(model_function, given):
        x, c = given["input"], dict(given["c"])
        c["c_crossattn"] = c["c_crossattn"].repeat(2, 1, 1)
        return model_function(x.repeat(2, 1, 1, 1), given["timestep"].repeat(2), **c)[: len(x)]

    model.set_model_unet_function_wrapper(doubled)
    with pytest.raises(ValueError, match="given 4 rows and FlexIP's tokens for 2"):
        sample(rig, model, rig.encode(*rig.prompts()))


@pytest.mark.promise(28, seed=0)
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_negative_keys_are_refused_and_stay_as_they_were_at_strength_zero(rig, cfg):
    conds, more = rig.encode(*rig.prompts()), rig.text(77, 8)
    theirs = rig.predict(other_packs.negative_keys(rig.model, more), *conds, cfg=5.0)
    zero = rig.predict(other_packs.negative_keys(rig.apply(0.5, strength=0.0), more), *conds, cfg=5.0)
    assert difference(zero, theirs) == 0 and difference(theirs, rig.predict(rig.model, *conds)) > 1e-3
    for strength in (1.0, 0.0001):
        with pytest.raises(ValueError, match=r"rows of queries and . of keys.*NAG"):
            rig.calls(other_packs.negative_keys(rig.apply(0.5, strength=strength), more), *conds, cfg=cfg)


@pytest.mark.promise(28, seed=0)
@pytest.mark.parametrize("order", ["theirs first", "ours first"])
def test_a_pack_that_runs_the_network_itself_runs_it_with_flexip(rig, order):
    conds = two_pieces(rig)
    wanted = sample(rig, rig.apply(0.5), conds)
    if order == "theirs first":
        model = rig.apply(0.5, model=other_packs.own_network_run(rig.model))
    else:
        model = other_packs.own_network_run(rig.apply(0.5))
    twice = rig.apply(0.2, model=model)
    assert apart(sample(rig, model, conds), wanted) <= CLOSE
    wanted_twice = sample(rig, rig.apply(0.2, model=rig.apply(0.5)), conds)
    assert apart(sample(rig, twice, conds), wanted_twice) <= CLOSE
    assert apart(wanted_twice, wanted) > 1e-2


IDLE = {
    "slots taken": (
        lambda model: other_packs.usurped(model, [("input", 1), ("middle", 0, 0)]),
        "did not act at 2 of 16 layers in this run, the first is down_blocks.0.attentions.0: another node's "
        f"{other_packs.Usurper.__module__}.Usurper took its place",
    ),
    "patches thrown away": (other_packs.without_patches, "did not act at 16 of 16 layers"),
    "the model's function replaced": (other_packs.own_model_run, "runs the model in a way of its own"),
}


@pytest.mark.idle
@pytest.mark.promise(28, seed=0)
@pytest.mark.parametrize("kind", IDLE)
def test_where_it_did_not_act_it_says_so_once(rig, caplog, kind):
    change, sentence = IDLE[kind]
    sample(rig, change(rig.apply(0.5)), rig.encode(*rig.prompts()))
    told = [record.message for record in caplog.records if "FlexIP" in record.message]
    assert len(told) == 1 and sentence in told[0] and "remove" in told[0]


@pytest.mark.idle
@pytest.mark.promise(28, seed=0)
def test_a_prompt_outside_of_its_part_of_the_sampling_and_a_plain_positive_are_told(rig, caplog):
    positive, negative = rig.prompts()
    conds = rig.encode([[positive[0][0], {"start_percent": 0.9, "end_percent": 1.0}]], negative)
    plain = [[positive[0][0], {"end_percent": 0.9}]]
    rig.calls(rig.apply(0.5, end=0.5), plain + conds[0], negative, sigmas=(14.0, 12.0, 11.0))
    assert ["no prompt that carries its tokens was active" in record.message for record in caplog.records] == [True]
    caplog.clear()
    sample(rig, rig.apply(0.5), (positive, conds[1]))
    assert ["did not act on the positive prompt" in record.message for record in caplog.records] == [True]


@pytest.mark.idle
@pytest.mark.promise(28, seed=0)
@pytest.mark.parametrize("kind", ["ConditioningConcat", "ConditioningAverage", "ConditioningZeroOut"])
def test_a_text_that_was_changed_after_its_s_was_made_is_told(rig, caplog, kind):
    nodes = importlib.import_module("nodes")
    conds, other = rig.encode(*rig.prompts()), [[rig.text(77, 30), {}]]
    change = getattr(nodes, kind)()
    given = {"ConditioningConcat": (other,), "ConditioningAverage": (other, 0.5)}.get(kind, ())
    (positive,) = getattr(change, change.FUNCTION)(conds[0], *given)
    sample(rig, rig.apply(0.5), (positive, conds[1]))
    assert ["place FlexIP Encode Reference last" in record.message for record in caplog.records] == [True]


def test_outside_of_its_range_nothing_is_told(rig, caplog):
    conds = rig.encode(*rig.prompts())
    assert len(rig.calls(rig.apply(0.5, start=0.9), *conds, sigmas=(14.0, 12.0, 11.0))) == 2
    rig.calls(rig.apply(0.5, layers=rig.part("nodes.schedule").parse_layers("down=0")), *conds)
    assert not caplog.records


@pytest.mark.promise(13, seed=0)
def test_a_second_subject_over_the_first_is_refused(rig):
    positive, negative = rig.encode(*rig.prompts())
    with pytest.raises(ValueError, match="already carries a subject.*Combine"):
        rig.encode(positive, negative, rig.features(seed=4))
    with pytest.raises(ValueError, match="already carries a subject"):
        rig.encode(rig.prompts()[0] + positive, rig.prompts()[1])
    other = rig.with_tensors({key: value + 0.01 for key, value in rig.tensors.items()})
    assert len(other.encode(positive, negative)[0][0][1]["model_conds"]) == 6  # another adapter's stand beside


@pytest.mark.promise(14, seed=0)
@pytest.mark.parametrize("random", [True, False])
def test_a_sweep_of_an_inpainting_has_one_noise(rig, random):
    """ComfyUI's `ddim` draws noise under the mask for the whole batch; at equal γ all pictures must be equal."""
    samplers = importlib.import_module("comfy.samplers")
    sweep = rig.pack.NODE_CLASS_MAPPINGS["FlexIPGammaSweep"]
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    conds = rig.encode(*rig.prompts())

    def run(gammas, batches=1):
        model, many, _ = sweep.execute(rig.model, rig.adapter, {"samples": latent, "noise_mask": mask}, gammas).args
        guider = samplers.CFGGuider(model)
        guider.set_conds(*conds)
        guider.set_cfg(3.0)
        rows = many["samples"].repeat(batches, 1, 1, 1)
        noise = torch.randn(batches, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        noise = noise.repeat_interleave(len(rows) // batches, 0)
        sampler = samplers.ksampler("euler", inpaint_options={"random": random})
        with torch.inference_mode():
            return guider.sample(
                noise,
                rows,
                sampler,
                torch.tensor([4.0, 1.0, 0.0]),
                disable_pbar=True,
                seed=0,
                denoise_mask=mask[None].expand(len(rows), -1, -1, -1),
            )

    pictures = run("0.7, 0.7, 0.2, 0.7")
    assert max(apart(pictures[1], pictures[0]), apart(pictures[3], pictures[0])) <= CLOSE
    assert apart(pictures[0], pictures[2]) > 1e-3
    assert apart(pictures[:1], run("0.7")) <= CLOSE
    twice = run("0.7, 0.2", batches=2)
    assert apart(twice[0], pictures[0]) <= CLOSE and apart(twice[2], pictures[0]) > 1e-3
