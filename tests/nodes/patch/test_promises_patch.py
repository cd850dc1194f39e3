"""The patch's promises, each against what the same models give without the thing that it is about."""

from __future__ import annotations

import gc
import hashlib
import importlib
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from flexip_model.method.adapters import FlexIPAdapter

from ...support.comfy_rig import CLOSE, difference
from .test_beside_others import OTHERS, node, run, sample
from .test_patch import separately


def silenced(rig, branch):
    """A rig whose adapter gives nothing in one branch."""
    tensors = {key: value.clone() for key, value in rig.tensors.items()}
    for key, value in tensors.items():
        if f".{branch}.to_v" in key:
            value.zero_()
    return rig.with_tensors(tensors)


@pytest.mark.promise(9, seed=0)
def test_gamma_one_is_the_preservation_branch_and_gamma_zero_the_other(rig, figures):
    prompts = rig.prompts()
    base = rig.predict(rig.model, *rig.encode(*prompts))
    for gamma, its, other in ((1.0, "preservation", "personalization"), (0.0, "personalization", "preservation")):
        full = rig.predict(rig.apply(gamma), *rig.encode(*prompts))
        without_other, without_its = silenced(rig, other), silenced(rig, its)
        alone = without_other.predict(without_other.apply(gamma), *without_other.encode(*prompts))
        nothing = without_its.predict(without_its.apply(gamma), *without_its.encode(*prompts))
        assert difference(full, base) > 1e-2
        assert difference(alone, full) == 0
        assert difference(nothing, base) <= 1e-6
        figures.worst(9, difference(full, base), f"effect at γ = {gamma:g}", lowest=True)
        figures.worst(9, difference(alone, full), "difference to the branch alone")


def weights_hash(model: Any) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.model.state_dict().items()):
        digest.update(key.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.promise(10, seed=0)
def test_base_patched_base_again(rig, figures):
    conds = rig.encode(*rig.prompts())
    before, weights = sample(rig, rig.model, conds, size=(8, 8)), weights_hash(rig.model)
    first, second = rig.apply(0.7), rig.apply(0.2)
    changed = sample(rig, first, conds, size=(8, 8))
    two = sample(rig, second, conds, size=(8, 8))
    del second
    gc.collect()
    again = sample(rig, rig.model, conds, size=(8, 8))
    one = sample(rig, first, conds, size=(8, 8))
    assert torch.equal(again, before) and torch.equal(one, changed) and not torch.equal(one, two)
    assert weights_hash(rig.model) == weights
    figures.worst(10, float((again - before).abs().max()), "difference of the latent")
    figures.cases(10, 3, 3, "latents and weight hashes")


@pytest.mark.promise(11)
def test_ten_clones_take_no_memory(rig, figures):
    patched = rig.apply(0.5, gamma_map=torch.rand(1, 1024, 1024))
    process = psutil.Process()
    patched.clone()
    gc.collect()
    before = process.memory_info().rss
    clones = [patched.clone() for _ in range(10)]
    grown = (process.memory_info().rss - before) / 1e6
    assert len(clones) == 10 and grown <= 1
    figures.worst(11, max(grown, 0), "memory of ten clones", " MB")


def layouts(rig) -> dict[str, tuple[Any, Any]]:
    """Ten layouts of conds: lengths, several entries, areas, masks, ranges, entries of another strength."""

    def entry(seed, tokens=77, **extras):
        return [rig.text(tokens, seed), extras]

    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    plain, other = [entry(5)], [entry(6)]
    return {
        "one and one": (plain, other),
        "two positives": ([entry(5), entry(7)], other),
        "three positives": ([entry(5), entry(7), entry(8)], other),
        "two negatives": (plain, [entry(6), entry(9)]),
        "two and two of four lengths": ([entry(5), entry(7, 154)], [entry(6, 231), entry(9, 308)]),
        "areas": ([entry(5, area=(8, 4, 0, 0)), entry(7, area=(8, 4, 0, 4))], other),
        "an area in percent": ([entry(5), entry(7, area=("percentage", 0.5, 1.0, 0.0, 0.5))], other),
        "masks": ([entry(5, mask=half), entry(7, 154, mask=1 - half)], other),
        "a mask with bounds": ([entry(5, strength=0.3), entry(7, mask=half, set_area_to_bounds=True)], other),
        "ranges": ([entry(5, start_percent=0.0, end_percent=1.0), entry(7, start_percent=0.1, end_percent=0.9)], other),
    }


def pieces(calls) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """Each cond's forward by itself: which side, its input, the first 77 tokens of its text, its output."""
    found = []
    for call in calls:
        parts = (part.chunk(len(call.conds)) for part in (call.x, call.context[:, :77], call.out))
        found += list(zip(call.conds, *parts, strict=True))
    return found


@pytest.mark.promise(12, seed=0)
def test_ten_layouts_give_what_one_cond_at_a_time_gives(rig, monkeypatch, figures):
    worst, given = 0.0, layouts(rig)
    assert len(given) == 10
    model = rig.apply(0.4)
    encoded = {name: rig.encode(*conds) for name, conds in given.items()}
    joined = {name: pieces(rig.calls(model, *conds, batch=2)) for name, conds in encoded.items()}
    separately(monkeypatch)
    for name, conds in encoded.items():
        calls = rig.calls(model, *conds, batch=2)
        assert all(len(call.conds) == 1 for call in calls)
        alone = pieces(calls)
        assert len(alone) == len(joined[name]) >= 2
        for side, x, text, out in joined[name]:
            same = [o for s, xx, t, o in alone if s == side and xx.equal(x) and t.equal(text)]
            assert same, name
            worst = max(worst, *(difference([out], [one]) for one in same))
    figures.cases(12, 10, 10, "layouts")
    figures.worst(12, worst, "largest difference")
    assert worst <= CLOSE


def guiders(rig, model, conds) -> dict[str, Any]:
    """The guiders of ComfyUI's nodes, ready to sample."""
    samplers = importlib.import_module("comfy.samplers")
    dual = node("nodes_custom_sampler", "Guider_DualCFG")
    positive, negative, middle = conds

    def plain(patched):
        guider = samplers.CFGGuider(patched)
        guider.set_conds(positive, negative)
        guider.set_cfg(5.0)
        return guider

    def three(nested):
        guider = dual(model)
        guider.set_conds(positive, middle, negative)
        guider.set_cfg(4.0, 2.0, nested)
        return guider

    perpneg = node("nodes_perpneg", "Guider_PerpNeg")(model)
    perpneg.set_conds(positive, negative, middle)
    perpneg.set_cfg(5.0, 1.0)
    return {
        "CFG": plain(model),
        "DualCFG": three(False),
        "DualCFG nested": three(True),
        "PerpNeg": perpneg,
        "PAG": plain(OTHERS["PAG"](model)),
        "SAG": plain(OTHERS["SAG"](model)),
    }


@pytest.mark.promise(13, seed=0)
@pytest.mark.parametrize("together", [True, False])
def test_every_guider_gives_each_prompt_its_own_tokens(rig, monkeypatch, together, figures):
    """Keys of both branches at every site and call are compared with those of the prompt that the row's text is."""
    if not together:
        separately(monkeypatch)
    texts = [rig.text(77, seed) for seed in (5, 6, 7)]
    positive, negative = rig.encode([[texts[0], {}]], [[texts[1], {}]])
    middle, _ = rig.encode([[texts[2], {}]], [], rig.features(seed=9))
    step, wrappers = rig.part("nodes.patch.run").Step, rig.part("nodes.patch.wrappers").Wrappers
    adapter, seen, contexts = rig.adapter.adapter, [], []
    tokens = [
        [entry[0][1]["model_conds"][key].cond for key in (rig.adapter.p_key, rig.adapter.s_key)]
        for entry in (positive, negative, middle)
    ]
    key_values, around = step.key_values, wrappers.around_model

    def watch(self, site):
        pair = key_values(self, site)
        seen.append((contexts[-1], site, pair))
        return pair

    def remember(self, executor, x, t, c_concat=None, c_crossattn=None, *args, **kwargs):
        contexts.append(c_crossattn)
        return around(self, executor, x, t, c_concat, c_crossattn, *args, **kwargs)

    monkeypatch.setattr(step, "key_values", watch)
    monkeypatch.setattr(wrappers, "around_model", remember)
    wrong = right = 0
    for name, guider in guiders(rig, rig.apply(0.5), (positive, negative, middle)).items():
        seen.clear()
        assert bool(torch.isfinite(sample(rig, None, None, guider=Ready(guider))).all())
        assert len(seen) >= 2 * 16, name
        for context, site, pair in seen:
            which = [next(i for i, text in enumerate(texts) if row.equal(text[0])) for row in context]
            for number, branch in enumerate(("preservation", "personalization")):
                wanted = torch.cat([tokens[i][number] for i in which])
                keys, _ = getattr(adapter.site(site), branch)(wanted)
                if difference([keys], [pair[number][0]]) > CLOSE:
                    wrong += 1
                else:
                    right += 1
    figures.cases(13, right, right + wrong, "keys of a branch at a site")
    assert wrong == 0


class Ready:
    """Hands a guider that has its conds to `sample`, which sets those of a plain one."""

    def __init__(self, guider: Any) -> None:
        self.sample = guider.sample


@pytest.mark.promise(14, seed=0)
def test_batches_of_latents_and_references_equal_singles(rig, figures):
    worst = 0.0
    for references in (1, 2, 4):
        conds = rig.encode(*rig.prompts(), rig.features(references))
        gammas = [0.0, 0.35, 1.0, 0.6, 0.1]
        alone = [rig.predict(rig.apply(gamma), *conds) for gamma in gammas]
        for batch in (1, 2, 3, 5):
            together = rig.predict(rig.apply(gammas[:batch]), *conds, batch=batch)
            for i in range(batch):
                worst = max(worst, difference([part[i : i + 1] for part in together], alone[i]))
    figures.cases(14, 12, 12, "batches")
    figures.worst(14, worst, "largest difference")
    assert worst <= CLOSE


@pytest.mark.promise(15, seed=0)
@pytest.mark.parametrize("tokens", [77, 154, 385])
@pytest.mark.parametrize("negative_tokens", [77, 154, 385])
def test_prompts_of_every_length_agree_joined_and_split(rig, monkeypatch, tokens, negative_tokens, figures):
    conds, model = rig.encode(*rig.prompts(tokens, negative_tokens)), rig.apply(0.4)
    joined = rig.predict(model, *conds)
    separately(monkeypatch)
    worst = difference(joined, rig.predict(model, *conds))
    figures.worst(15, worst, "largest difference")
    assert worst <= CLOSE


@pytest.mark.promise(16)
def test_a_quarter_lies_on_its_quarter_at_every_latent_size(rig, figures):
    """Every height and width of the latent from 8 to 160, at the grid of every level."""
    step = object.__new__(rig.part("nodes.patch.run").Step)
    step.frames, step.rows = None, 1
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, 32:] = 1
    sizes = range(8, 161)
    some = sizes if figures.count(0, 1) else (8, 9, 15, 24, 33, 64, 97, 160)
    grids = set()
    for pair in ((h, w) for h in sizes for w in some):
        for height, width in (pair, pair[::-1]):
            for _ in range(4):
                grids.add((height, width))
                height, width = -(-height // 2), -(-width // 2)
    wrong = []
    for height, width in sorted(grids):
        placed = step._on_grid(mask, (height, width), "the mask").reshape(height, width)
        rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
        # Next to the edge a token, or the mask's own pixel where that is larger, holds a little of both.
        away_y, away_x = ((at - side / 2).abs() >= max(1, side / 64) for at, side in ((rows, height), (columns, width)))
        wanted = ((rows < height / 2)[:, None] & (columns > width / 2)[None]).float()
        clear = away_y[:, None] & away_x[None]
        if float((placed - wanted)[clear].abs().max() if clear.any() else 0) > 0.01:
            wrong.append((height, width))
    figures.cases(16, len(grids) - len(wrong), len(grids), "grids")
    assert wrong == []


@pytest.mark.promise(16, seed=0)
@pytest.mark.parametrize("size", [(8, 160), (160, 8), (8, 8), (97, 24), (24, 97), (63, 65)])
def test_the_grid_is_the_layers_own_at_the_ends_of_the_range(rig, monkeypatch, size, figures):
    seen, gate = [], rig.part("nodes.patch.run").Step.gate

    def watch(step, site, grid):
        pair = gate(step, site, grid)
        height, width = size
        for _ in range(site.level):
            height, width = -(-height // 2), -(-width // 2)
        seen.append(((height, width), pair[0][0, :, 0].reshape(height, width)))
        return pair

    monkeypatch.setattr(rig.part("nodes.patch.run").Step, "gate", watch)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, :] = 1
    out = rig.predict(rig.apply(1.0, attention_mask=mask), *rig.encode(*rig.prompts()), size=size)
    assert all(bool(torch.isfinite(part).all()) for part in out) and len(seen) == 16
    wrong = 0
    for (height, width), placed in seen:
        if height >= 4:
            wrong += float(placed[: height // 2 - 1].min() if height > 3 else 1) < 0.99
            wrong += float(placed[-(-height // 2) + 1 :].abs().max()) > 0.01
        assert placed.shape == (height, width)
    figures.cases(16, len(seen) - wrong, len(seen), "layers of whole forwards")
    assert wrong == 0


def beside(rig, patch, sizes):
    """Where FlexIP with masks of ones differs from FlexIP without, and where anything fails; the largest difference."""
    wrong, worst = [], 0.0
    conds = rig.encode(*rig.prompts())
    ones = torch.ones(1, 24, 24)
    for size in sizes:
        try:
            plain = sample(rig, patch(rig.apply(0.5)), conds, size=size)
            masked = sample(rig, patch(rig.apply(0.5, attention_mask=ones, gamma_map=ones)), conds, size=size)
            off = sample(rig, patch(rig.apply(0.5, attention_mask=0 * ones)), conds, size=size)
            base = sample(rig, patch(rig.model), conds, size=size)
        except Exception as error:
            wrong.append(f"{size}: {error!r}")
            continue
        scale = float(plain.abs().max())
        found = max(difference([plain], [masked]), difference([off], [base])) / scale
        worst = max(worst, found)
        if not bool(torch.isfinite(plain).all()) or found > 1e-4 or difference([plain], [base]) < 1e-2:
            wrong.append(f"{size}: {found}")
    return wrong, worst


@pytest.mark.promise(17, seed=0)
@pytest.mark.parametrize("other", ["HyperTile", "ToMe"])
def test_tiled_and_merged_tokens_at_odd_sizes(rig, other, figures):
    sizes = ((16, 16), (18, 10), (17, 13), (9, 31), (31, 9), (24, 8))
    wrong, worst = beside(rig, OTHERS[other], sizes)
    figures.cases(17, len(sizes) - len(wrong), len(sizes), f"sizes with {other}")
    figures.worst(17, worst, "largest relative difference of masks of ones and none")
    assert wrong == []


@pytest.mark.promise(18, seed=0)
@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("block", [1, 3, 6])
def test_deep_shrink_at_every_factor(rig, factor, block, figures):
    patch = run("PatchModelAddDownscale", "nodes_model_downscale", block, factor, 0.0, 1.0, True, "bicubic", "bicubic")
    sizes = ((24, 24), (18, 30))
    wrong, worst = beside(rig, patch, sizes)
    figures.cases(18, len(sizes) - len(wrong), len(sizes), "sizes, blocks and factors")
    figures.worst(18, worst, "largest relative difference of masks of ones and none")
    assert wrong == []


def rounded(rig, dtype, monkeypatch):
    """The base model in a dtype, and one in float32 with the same rounded weights."""
    management = importlib.import_module("comfy.model_management")
    load = rig.part("nodes.loading.diffusers_folder").load_unet
    eight = dtype == torch.float8_e4m3fn
    with monkeypatch.context() as patched:
        patched.setattr(management, "unet_dtype", lambda **_: dtype)
        patched.setattr(management, "unet_manual_cast", lambda *_: torch.bfloat16 if eight else None)
        model = load(rig.folder)
    exact = load(rig.folder)
    for parameter in exact.model.diffusion_model.parameters():
        parameter.data.copy_(parameter.data.to(dtype).float())
    return model, exact


@pytest.mark.promise(19, seed=0)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_dtypes_of_model_encoders_and_adapter(rig, demo, monkeypatch, dtype, figures):
    model, exact = rounded(rig, dtype, monkeypatch)
    encode, picture, encoders = rig.part("nodes.encode"), demo[5], demo[3]
    errors, lowest = [], 1.0
    halves = rig.with_tensors({key: value.half() for key, value in rig.tensors.items()})
    reference = None
    for encoder_dtype in (torch.float32, torch.float16, torch.bfloat16):
        for owner in (rig, halves):
            encoders.recent.clear()
            try:
                with torch.inference_mode():
                    for module in (encoders.encoders.clip, encoders.encoders.dino):
                        module.to(encoder_dtype)
                    features, _ = encode.encode_features(encoders, encoders.encoders.look(picture), FlexIPAdapter)
                    conds = owner.encode(*owner.prompts(), features)
                    reference = reference or rig.predict(rig.apply(0.5, model=exact), *conds)
                    out = owner.predict(owner.apply(0.5, model=model), *conds)
            except Exception as error:
                errors.append(f"{encoder_dtype}: {error!r}")
                continue
            flat = [torch.cat([part.float().flatten() for part in parts]) for parts in (out, reference)]
            lowest = min(lowest, float(torch.nn.functional.cosine_similarity(*flat, dim=0)))
    figures.cases(19, 6 - len(errors), 6, "combinations of dtypes")
    figures.worst(19, lowest, f"lowest cosine, model {str(dtype).removeprefix('torch.')}", lowest=True)
    assert errors == []
    assert lowest >= 0.999


@pytest.mark.promise(20, seed=0)
@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("backend", ["attention_basic", "attention_split", "attention_sub_quad", "attention_pytorch"])
def test_no_backend_makes_a_black_picture(rig, monkeypatch, backend, upcast, figures):
    attention = importlib.import_module("comfy.ldm.modules.attention")
    wanted = rig.predict(rig.apply(0.5), *rig.encode(*rig.prompts()))
    monkeypatch.setattr(attention, "optimized_attention", getattr(attention, backend))
    if upcast:
        kinds = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
        monkeypatch.setattr(attention, "FORCE_UPCAST_ATTENTION_DTYPE", kinds)
    # Half of the picture without FlexIP, and a γ map of both ends: weights of exactly 0 and 1 are there.
    half = torch.zeros(1, 8, 8)
    half[..., 4:] = 1
    broken, runs = 0, 0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model, _ = rounded(rig, dtype, monkeypatch)
        for settings in ({}, {"attention_mask": half}, {"gamma_map": half, "strength": 2.0}):
            out = rig.predict(rig.apply(0.5, model=model, **settings), *rig.encode(*rig.prompts(77, 154)))
            broken += sum(int((~torch.isfinite(part)).sum()) for part in out)
            runs += 1
    found = difference(rig.predict(rig.apply(0.5), *rig.encode(*rig.prompts())), wanted)
    figures.cases(20, runs, runs, "runs")
    figures.worst(20, broken, "numbers that are not finite")
    figures.worst(20, found, "largest difference between backends in float32")
    assert broken == 0 and found <= 1e-4


@pytest.mark.promise(21, seed=0)
@pytest.mark.parametrize("mode", ["lowvram", "novram", "cpu"])
def test_memory_modes_change_nothing(rig, monkeypatch, mode, figures):
    """Partial loading as on a small card: the layers that do not fit stay where they are and are cast as they run."""
    management, patching = (importlib.import_module(f"comfy.{name}") for name in ("model_management", "model_patcher"))
    half = rig.with_tensors({key: value.half() for key, value in rig.tensors.items()})
    conds = half.encode(*half.prompts())
    wanted = half.predict(half.apply(0.5), *conds)
    management.unload_all_models()
    load, share = patching.ModelPatcher.load, {"lowvram": 0.5, "novram": 0.0, "cpu": 2.0}[mode]

    def within(self, device_to=None, lowvram_model_memory=0, *args, full_load=False, **kwargs):
        return load(self, device_to, 0.1 + share * self.model_size(), *args, full_load=False, **kwargs)

    monkeypatch.setattr(patching.ModelPatcher, "load", within)
    try:
        found = half.predict(half.apply(0.5), *conds)
        adapter = half.adapter.adapter
        waiting = sum(hasattr(module, "prev_comfy_cast_weights") for module in adapter.modules())
        layers = sum(isinstance(module, torch.nn.Linear) for module in adapter.modules())
    finally:
        management.unload_all_models()
        monkeypatch.undo()
    assert waiting >= {"lowvram": 1, "novram": layers, "cpu": 0}[mode]
    assert (waiting > 0) == (mode != "cpu")
    figures.cases(21, 1, 1, mode)
    figures.worst(21, difference(found, wanted), "largest difference")
    assert difference(found, wanted) <= CLOSE
