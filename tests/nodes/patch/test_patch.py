"""The patch inside ComfyUI's own guider: exact ends, nothing changed that is not its own, any layout of conds."""

import copy
import gc
import importlib
import math

import pytest
import torch

from ...support.comfy_rig import CLOSE, difference
from ...support.helpers import tiny_adapter, tiny_config


def spoiled(rig, branch):
    """A rig whose adapter has NaN in one branch: any use of it shows."""
    tensors = {k: v.clone() for k, v in rig.tensors.items()}
    for key, value in tensors.items():
        if f".{branch}." in key:
            value.fill_(math.nan)
    return rig.with_tensors(tensors)


@pytest.mark.promise(9, seed=0)
def test_strength_zero_is_exactly_the_unpatched_model(rig, figures):
    conds = rig.encode(*rig.prompts())
    base = rig.predict(rig.model, *conds)
    silent = rig.apply(0.5, strength=0.0)
    assert not silent.wrappers and not silent.model_options["transformer_options"]
    off, effect = (difference(rig.predict(model, *conds), base) for model in (silent, rig.apply(0.5)))
    figures.worst(9, off, "difference at strength 0")
    figures.worst(9, effect, "effect at strength 1", lowest=True)
    assert off == 0 and effect > 1e-2
    nowhere = dict.fromkeys(rig.part("nodes.schedule").parse_layers(""), 0.0)
    assert difference(rig.predict(rig.apply(0.5, layers=nowhere), *conds), base) == 0


@pytest.mark.parametrize(("gamma", "unused"), [(1.0, "personalization"), (0.0, "preservation")])
@pytest.mark.promise(9, seed=0)
def test_at_the_ends_of_gamma_the_other_branch_is_not_used(rig, gamma, unused):
    broken = spoiled(rig, unused)
    out = broken.predict(broken.apply(gamma), *broken.encode(*rig.prompts()))
    assert difference(out, rig.predict(rig.apply(gamma), *rig.encode(*rig.prompts()))) == 0


@pytest.mark.promise(14, seed=0)
def test_one_gamma_per_picture_equals_one_run_each(rig):
    conds, gammas = rig.encode(*rig.prompts()), [0.0, 0.3, 1.0]
    together = rig.predict(rig.apply(gammas), *conds, batch=3)
    for i, gamma in enumerate(gammas):
        assert difference([t[i : i + 1] for t in together], rig.predict(rig.apply(gamma), *conds)) <= CLOSE
    with pytest.raises(ValueError, match="γ has 3 values and the sampler works on 2 pictures at a time"):
        rig.predict(rig.apply(gammas), *conds, batch=2)


@pytest.mark.promise(10, seed=0)
def test_the_model_and_its_other_clones_stay_as_they_were(rig):
    conds = rig.encode(*rig.prompts())
    options, weights = copy.deepcopy(rig.model.model_options), [p.clone() for p in rig.model.model.parameters()]
    other = rig.model.clone()
    before = rig.predict(rig.model, *conds)
    patched = rig.apply(0.7)
    rig.predict(patched, *conds)
    del patched
    assert rig.model.model_options == options and not rig.model.wrappers
    assert all(torch.equal(a, b) for a, b in zip(weights, rig.model.model.parameters(), strict=True))
    assert difference(rig.predict(rig.model, *conds), before) == 0
    assert difference(rig.predict(other, *conds), before) == 0


@pytest.mark.promise(11)
def test_ten_clones_share_every_tensor(rig):
    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    patched = rig.apply(0.5, gamma_map=torch.rand(1, 64, 64))
    before = tensors()
    clones = [patched.clone() for _ in range(10)]
    copied = copy.deepcopy(patched.wrappers)  # what a pack may do that copies a model's options while sampling
    assert tensors() == before and copied.keys() == patched.wrappers.keys()
    assert (
        difference(
            rig.predict(clones[-1], *rig.encode(*rig.prompts())), rig.predict(patched, *rig.encode(*rig.prompts()))
        )
        == 0
    )


def separately(monkeypatch):
    """No free memory: ComfyUI then runs every cond by itself."""
    management = importlib.import_module("comfy.model_management")
    monkeypatch.setattr(management, "get_free_memory", lambda _, both=False: (0, 0) if both else 0)


@pytest.mark.parametrize(("tokens", "negative_tokens"), [(77, 77), (77, 154), (154, 77), (77, 385), (385, 77)])
@pytest.mark.promise(12, 15, seed=0)
def test_joined_and_separate_conds_agree(rig, monkeypatch, tokens, negative_tokens):
    conds, model = rig.encode(*rig.prompts(tokens, negative_tokens)), rig.apply(0.4)
    joined = rig.predict(model, *conds, batch=2)
    separately(monkeypatch)
    calls = rig.calls(model, *conds, batch=2)
    assert [call.conds for call in calls] in ([[0], [1]], [[1], [0]])
    assert difference(joined, rig.predict(model, *conds, batch=2)) <= CLOSE


@pytest.mark.promise(12, seed=0)
def test_several_entries_in_one_conditioning_keep_their_own_tokens(rig, monkeypatch):
    """[1, 0, 0] and other layouts: combined prompts with areas, each with its own S."""
    first, negative = rig.prompts()
    second = [[rig.text(154, 9), {"area": (8, 4, 0, 0)}]]
    third = [[rig.text(77, 10), {"mask": torch.ones(1, 64, 64), "strength": 0.5}]]
    conds, model = rig.encode(first + second + third, negative), rig.apply(0.4)

    def run():
        return rig.calls(model, *conds, sigmas=(5.0, 3.0, 1.0))

    joined = run()
    assert any(sorted(call.conds) == [0, 0, 1] for call in joined)
    separately(monkeypatch)
    alone = run()
    assert all(len(call.conds) == 1 for call in alone)
    # The second step starts from what the first made of all of them.
    assert difference([joined[-1].x[:1]], [alone[-1].x[:1]]) <= 1e-4


@pytest.mark.promise(13, seed=0)
def test_three_conds_in_a_dual_guider(rig, monkeypatch):
    extras = importlib.import_module("comfy_extras.nodes_custom_sampler")
    samplers = importlib.import_module("comfy.samplers")
    positive, negative = rig.prompts()
    middle = [[rig.text(77, 12), {}]]
    (first, second), (_, last) = rig.encode(positive, middle), rig.encode(positive, negative)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def run():
        guider = extras.Guider_DualCFG(rig.apply(0.6))
        guider.set_conds(first, second, last)
        guider.set_cfg(4.0, 2.0)
        with torch.inference_mode():
            sampler = samplers.ksampler("euler")
            return guider.sample(noise, noise * 0, sampler, torch.tensor([4.0, 1.0]), disable_pbar=True, seed=0)

    joined = run()
    separately(monkeypatch)
    # Guidance makes values of up to 50; their last bits differ between processors.
    assert difference([joined], [run()]) <= 5e-6 * float(joined.abs().max())


@pytest.mark.promise(13, seed=0)
def test_a_prompt_without_tokens_is_left_alone_and_a_run_without_any_is_an_error(rig):
    positive, negative = rig.prompts()
    with_tokens, _ = rig.encode(positive, negative)
    base, out = rig.predict(rig.model, positive, negative), rig.predict(rig.apply(0.5), with_tokens, negative)
    assert difference([out[1]], [base[1]]) <= CLOSE
    assert difference([out[0]], [base[0]]) > 1e-2
    with pytest.raises(ValueError, match="no prompt carries its tokens"):
        rig.predict(rig.apply(0.5), positive, negative)
    shared = {key: value.clone() for key, value in rig.tensors.items()}
    shared[max(shared)][0] += 1  # one tensor alone is another one
    for other in (spoiled(rig, "preservation"), rig.with_tensors(shared)):
        with pytest.raises(ValueError, match="with the same adapter"):
            rig.predict(other.apply(0.5), *rig.encode(positive, negative))


def count_projections(rig, monkeypatch):
    branch, seen = rig.part("flexip_model.method.attention").Branch, []
    forward = branch.forward
    monkeypatch.setattr(branch, "forward", lambda self, tokens: seen.append(tokens.shape) or forward(self, tokens))
    return seen


def test_keys_and_values_are_projected_once_per_run(rig, monkeypatch):
    seen, conds = count_projections(rig, monkeypatch), rig.encode(*rig.prompts())
    sigmas = (8.0, 5.0, 3.0, 1.0, 0.0)
    rig.calls(rig.apply(0.5), *conds, sigmas=sigmas)
    assert len(seen) == 16 * 2  # sites × branches, both conds in one call
    rig.calls(rig.apply(1.0), *conds, sigmas=sigmas)
    assert len(seen) == 16 * 2 + 16  # at γ = 1 no S
    separately(monkeypatch)
    seen.clear()
    rig.calls(rig.apply(0.5), *conds, sigmas=sigmas)
    assert len(seen) == 16 * 2 * 2


@pytest.mark.promise(33, seed=0)
def test_an_interrupted_run_leaves_nothing_behind(rig):
    management = importlib.import_module("comfy.model_management")
    conds, model = rig.encode(*rig.prompts()), rig.apply(0.5)
    clean = rig.predict(model, *conds)

    def interrupt(*_):
        raise management.InterruptProcessingException

    for _ in range(5):
        with pytest.raises(management.InterruptProcessingException):
            rig.calls(model, *conds, sigmas=(8.0, 5.0, 1.0), callback=interrupt)
    assert difference(rig.predict(model, *conds), clean) == 0
    gc.collect()
    kinds = (rig.part("nodes.patch.run").SamplingRun, rig.part("nodes.patch.run").Step)
    assert not [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.promise(19, seed=0)
def test_other_dtypes_of_the_model(rig, monkeypatch, dtype):
    management = importlib.import_module("comfy.model_management")
    monkeypatch.setattr(management, "unet_dtype", lambda **_: dtype)
    cast = torch.bfloat16 if dtype == torch.float8_e4m3fn else None
    monkeypatch.setattr(management, "unet_manual_cast", lambda *_: cast)
    model = rig.part("nodes.loading.diffusers_folder").load_unet(rig.folder)
    conds = rig.encode(*rig.prompts())
    for settings in ({}, {"gamma_map": torch.ones(1, 8, 8)}):
        out = rig.predict(rig.apply(0.5, model=model, **settings), *conds)
        assert all(bool(torch.isfinite(part).all()) for part in out)
        if dtype != torch.float8_e4m3fn:  # eight bits in the base model differ more than that by themselves
            exact = rig.predict(rig.apply(0.5), *conds)
            flat = [torch.cat([part.float().flatten() for part in parts]) for parts in (out, exact)]
            assert torch.nn.functional.cosine_similarity(*flat, dim=0) >= 0.999


@pytest.mark.promise(21, 38)
def test_weights_belong_to_comfyuis_memory_management(rig):
    patched = rig.apply(0.5)
    assert set(patched.model_patches_models()) == {rig.adapter.patcher}
    patched.model_patches_to(torch.device("cpu"))
    patched.model_patches_to(torch.float16)
    conds = rig.encode(*rig.prompts())
    assert difference(rig.predict(patched, *conds), rig.predict(rig.apply(0.5), *conds)) == 0


@pytest.mark.parametrize("kind", ["ip-adapter", "ip-adapter-plus"])
def test_an_imported_adapter_has_p_alone_and_gamma_is_its_weight(rig, kind):
    from flexip_model.method.adapters import create_adapter

    config = tiny_config(kind=kind)
    torch.manual_seed(4)
    imported = rig.with_tensors(create_adapter(config).state_dict(), config)
    conds = imported.encode(*rig.prompts())
    half = imported.predict(imported.apply(0.5), *conds)
    assert difference(half, imported.predict(imported.apply(1.0, strength=0.5), *conds)) <= CLOSE
    assert difference(half, rig.predict(rig.model, *conds)) > 1e-3
    assert difference(imported.predict(imported.apply(0.0), *conds), rig.predict(rig.model, *conds)) == 0


def test_other_models_are_refused_by_name(rig):
    models = importlib.import_module("comfy.supported_models")
    base = importlib.import_module("comfy.model_patcher")
    settings = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "use_spatial_transformer": True,
        "legacy": False,
        "model_channels": 32,
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 4, 4],
        "channel_mult": [1, 2, 4],
        "transformer_depth_middle": 4,
        "use_linear_in_transformer": True,
        "context_dim": 64,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 4, 4, 4],
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "num_classes": "sequential",
        "adm_in_channels": 64,
        "dtype": torch.float32,
    }
    config = models.SDXL(settings)
    config.unet_config["num_head_channels"] = 32
    sdxl = base.ModelPatcher(config.get_model({}, ""), torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(ValueError, match="this model is a SDXL with .* needs Stable Diffusion 1.5"):
        rig.apply(0.5, model=sdxl)
    wider = tiny_adapter(text_width=64)
    with pytest.raises(ValueError, match=r"do not belong together: .* text of 48, the adapter 32 with 64"):
        rig.with_tensors(wider.state_dict(), wider.config).apply(0.5)
