"""Where and when the patch acts: masks, γ maps, ranges, curves, layers, context windows."""

import importlib

import pytest
import torch

from ...support.comfy_rig import CLOSE, difference


@pytest.mark.promise(16, seed=0)
def test_a_mask_of_ones_changes_nothing_and_of_zeros_switches_off(rig):
    conds = rig.encode(*rig.prompts())
    plain, base = rig.predict(rig.apply(0.6), *conds), rig.predict(rig.model, *conds)
    ones, zeros = torch.ones(1, 50, 70), torch.zeros(1, 50, 70)
    assert difference(rig.predict(rig.apply(0.6, attention_mask=ones), *conds), plain) <= CLOSE
    assert difference(rig.predict(rig.apply(0.6, attention_mask=zeros), *conds), base) == 0
    assert difference(rig.predict(rig.apply(0.6, gamma_map=ones), *conds), plain) <= CLOSE
    zero_gamma = rig.predict(rig.apply(0.0), *conds)
    assert difference(rig.predict(rig.apply(0.6, gamma_map=zeros), *conds), zero_gamma) <= CLOSE


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (13, 9), (8, 40), (40, 8), (15, 17), (23, 31), (33, 11)])
@pytest.mark.promise(16, seed=0)
def test_masks_at_every_size_lie_on_the_right_places(rig, monkeypatch, size):
    """The upper left quarter: at every site the weights are one there, zero in the lower right, on the true grid."""
    seen, gate = [], rig.part("nodes.patch.run").Step.gate

    def watch(step, site, grid):
        pair = gate(step, site, grid)
        seen.append((grid, pair[0]))
        return pair

    monkeypatch.setattr(rig.part("nodes.patch.run").Step, "gate", watch)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, :32] = 1
    out = rig.predict(rig.apply(1.0, attention_mask=mask), *rig.encode(*rig.prompts()), size=size)
    assert all(bool(torch.isfinite(part).all()) for part in out)
    assert len(seen) == 16
    for (height, width), weights in seen:
        placed = weights[0, :, 0].reshape(height, width)
        assert placed[0, 0] > 0.9 * (height > 1 and width > 1)
        if height >= 4 and width >= 4:
            assert placed[-1, -1] == 0 and placed[0, -1] == 0 and placed[-1, 0] == 0


@pytest.mark.promise(16, seed=0)
def test_a_mask_per_picture(rig):
    conds = rig.encode(*rig.prompts())
    masks = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    out = rig.predict(rig.apply(0.5, attention_mask=masks), *conds, batch=2)
    base, full = rig.predict(rig.model, *conds, batch=2), rig.predict(rig.apply(0.5), *conds, batch=2)
    assert difference([part[:1] for part in out], [part[:1] for part in base]) <= CLOSE
    assert difference([part[1:] for part in out], [part[1:] for part in full]) <= CLOSE


@pytest.mark.promise(36, seed=0)
def test_ranges_of_the_sampling_are_exact(rig):
    sampling = rig.model.get_model_object("model_sampling")
    sigmas = [float(sampling.percent_to_sigma(i / 20)) for i in range(1, 20)] + [0.0]
    conds = rig.encode(*rig.prompts())

    def active(start, end):
        return [call.active for call in rig.calls(rig.apply(0.5, start=start, end=end), *conds, sigmas=sigmas)]

    assert all(active(0.0, 1.0))
    early, late = active(0.0, 0.35), active(0.35, 1.0)
    assert early == [i / 20 < 0.35 for i in range(1, 20)]
    assert late == [not on for on in early]
    assert active(0.5, 0.6) == [0.5 <= i / 20 < 0.6 for i in range(1, 20)]


@pytest.mark.promise(36, seed=0)
def test_a_range_that_excludes_a_step_leaves_the_model_alone(rig):
    conds = rig.encode(*rig.prompts())
    late = rig.apply(0.5, start=0.9)
    assert difference(rig.predict(late, *conds), rig.predict(rig.model, *conds)) == 0


def test_a_curve_gives_each_step_its_gamma(rig):
    sampling = rig.model.get_model_object("model_sampling")
    parse, conds = rig.part("nodes.schedule").parse_curve, rig.encode(*rig.prompts())
    curve = parse("0:1, 0.5:0.2, 1:0.2")
    for position, gamma in ((0.25, 0.6), (0.5, 0.2), (0.9, 0.2)):
        sigma = float(sampling.percent_to_sigma(position))
        out = rig.predict(rig.apply(0.9, curve=curve), *conds, sigmas=(sigma, 0.0))
        assert difference(out, rig.predict(rig.apply(gamma), *conds, sigmas=(sigma, 0.0))) <= 1e-4
    level = parse("0.3")
    assert difference(rig.predict(rig.apply(0.9, curve=level), *conds), rig.predict(rig.apply(0.3), *conds)) <= CLOSE


def test_layer_weights_act_on_their_blocks(rig):
    conds, parse = rig.encode(*rig.prompts()), rig.part("nodes.schedule").parse_layers
    halves = rig.predict(rig.apply(0.5, layers=parse("down=0.5, mid=0.5, up=0.5")), *conds)
    assert difference(halves, rig.predict(rig.apply(0.5, strength=0.5), *conds)) <= CLOSE
    only_up, seen = rig.apply(0.5, layers=parse("down=0, mid=0")), []

    def look(executor, x, t, context, y, control, options, **kwargs):
        seen.append(sorted(options["patches_replace"]["attn2"]))
        return executor(x, t, context, y, control, options, **kwargs)

    wrappers = importlib.import_module("comfy.patcher_extension").WrappersMP
    only_up.add_wrapper_with_key(wrappers.DIFFUSION_MODEL, "look", look)
    rig.predict(only_up, *conds)
    assert seen == [[("output", number) for number in range(3, 12)]]


def test_the_hosts_curve_editor_gives_each_step_its_gamma(rig):
    """CURVE: an object that is asked for γ at a position; older hosts have none, and take text alone."""
    schedule = rig.part("nodes.schedule")

    class Bent:
        def interp(self, x):
            return x * x

    curve = schedule.read_curve(Bent())
    for position in (0.0, 0.123, 0.5, 0.777, 1.0):
        assert abs(schedule.gamma_at(curve, position) - position**2) < 1e-4
    assert schedule.read_curve("0:1, 1:0") == ((0.0, 1.0), (1.0, 0.0))
    assert schedule.read_curve("") is None
    Bent.interp = lambda self, x: 1.5 * x
    with pytest.raises(ValueError, match=r"the γ curve reaches 1\.00\d+; expected values from 0 to 1"):
        schedule.read_curve(Bent())
    with pytest.raises(ValueError, match="the γ curve is a float; expected text such as"):
        schedule.read_curve(0.5)
    io = importlib.import_module("comfy_api.latest").io
    described = rig.pack.NODE_CLASS_MAPPINGS["FlexIPApply"].GET_NODE_INFO_V1()["input"]["optional"]["curve"]
    assert described[0] == ("STRING,CURVE" if hasattr(io, "Curve") else "STRING")


@pytest.mark.parametrize("interpolation", ["linear", "monotone_cubic"])
def test_a_curve_of_this_host_is_read_as_the_editor_draws_it(rig, interpolation):
    schedule, api = rig.part("nodes.schedule"), importlib.import_module("comfy_api.input")
    if not hasattr(api, "CurveInput"):
        assert not hasattr(importlib.import_module("comfy_api.latest").io, "Curve")
        return
    drawn = api.CurveInput.from_raw({"points": [(0, 1), (0.4, 0.9), (1, 0.1)], "interpolation": interpolation})
    curve = schedule.read_curve(drawn)
    for position in (0.0, 0.2, 0.4, 0.41, 0.8, 1.0):
        assert abs(schedule.gamma_at(curve, position) - float(drawn.interp(position))) < 2e-3


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.promise(30, seed=0)
def test_context_windows_take_their_own_gammas(rig, overlap):
    """Eight frames in windows of four: each keeps its γ and its mask, whatever else the host puts into a window."""
    windows = importlib.import_module("comfy.context_windows")
    gammas, masks = torch.linspace(0, 1, 8).tolist(), torch.linspace(1, 0.3, 8)[:, None, None].expand(8, 8, 8)
    conds, model = rig.encode(*rig.prompts()), rig.apply(gammas, attention_mask=masks)
    split = model.clone()
    split.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("flat"),
        context_length=4,
        context_overlap=overlap,
        dim=0,
    )
    sigmas = (5.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.0, 0.0)

    def frames(model):
        seen = []
        calls = rig.calls(model, *conds, batch=8, sigmas=sigmas, callback=lambda i, x0, *_: seen.append(x0.clone()))
        return seen, len(calls)

    (whole, once), (parts, several) = frames(model), frames(split)
    assert several >= 2 * once
    assert difference(parts, whole) <= 1e-4  # after seven steps
    # Guidance makes values of ten and more of them; their last bits differ with the number of threads.
    assert difference(parts[:1], whole[:1]) <= CLOSE * float(whole[0].abs().max())
    assert difference([whole[0][:-1]], [whole[0][1:]]) > 1e-3  # frames from one noise differ by their γ alone
