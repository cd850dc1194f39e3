"""FlexIP beside ComfyUI's own nodes that patch the same model: no crash, an effect, strength 0 still without effect."""

import importlib
import random

import pytest
import torch


def node(module, name):
    return getattr(importlib.import_module(f"comfy_extras.{module}"), name)


def run(name, module, *settings):
    """How ComfyUI runs a node: V3 nodes by `execute`, V1 nodes by their function."""

    def patch(model):
        kind = node(module, name)
        if hasattr(kind, "execute"):
            return kind.execute(model, *settings)[0]
        return getattr(kind(), kind.FUNCTION)(model, *settings)[0]

    return patch


OTHERS = {
    "HyperTile": run("HyperTile", "nodes_hypertile", 64, 2, 0, False),
    "ToMe": run("TomePatchModel", "nodes_tomesd", 0.5),
    "FreeU": run("FreeU_V2", "nodes_freelunch", 1.3, 1.4, 0.9, 0.2),
    "PAG": run("PerturbedAttentionGuidance", "nodes_pag", 3.0),
    "SAG": run("SelfAttentionGuidance", "nodes_sag", 0.5, 2.0),
    "Deep Shrink": run("PatchModelAddDownscale", "nodes_model_downscale", 3, 2.0, 0.0, 1.0, True, "bicubic", "bicubic"),
    "Rescale CFG": run("RescaleCFG", "nodes_model_advanced", 0.7),
    "PerpNeg": None,
}
SIGMAS = (8.0, 4.0, 1.0)


def sample(rig, model, conds, size=(16, 16), batch=1, guider=None):
    """The latent after two Euler steps."""
    samplers = importlib.import_module("comfy.samplers")
    random.seed(0)
    torch.manual_seed(0)  # HyperTile and ToMe draw from the global generators
    noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(2)).repeat(batch, 1, 1, 1)
    guider = guider or samplers.CFGGuider(model)
    if type(guider) is samplers.CFGGuider:
        guider.set_conds(*conds)
        guider.set_cfg(5.0)
    with torch.inference_mode():
        return guider.sample(
            noise, noise * 0, samplers.ksampler("euler"), torch.tensor(SIGMAS), disable_pbar=True, seed=0
        )


def with_other(rig, other, model, conds, **settings):
    if other == "PerpNeg":
        guider = node("nodes_perpneg", "Guider_PerpNeg")(model)
        guider.set_conds(*conds, [[rig.text(77, 20), {}]])
        guider.set_cfg(5.0, 1.0)
        return sample(rig, model, conds, guider=guider, **settings)
    return sample(rig, OTHERS[other](model), conds, **settings)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.promise(28, seed=0)
def test_beside(rig, other):
    conds = rig.encode(*rig.prompts())
    base = with_other(rig, other, rig.model, conds)
    silent, ours = (with_other(rig, other, rig.apply(0.5, strength=s), conds) for s in (0.0, 1.0))
    assert torch.equal(silent, base)
    assert bool(torch.isfinite(ours).all()) and (ours - base).abs().max() > 1e-2
    masked = rig.apply(0.5, attention_mask=torch.ones(1, 24, 24), gamma_map=torch.ones(1, 24, 24))
    assert (with_other(rig, other, masked, conds) - ours).abs().max() <= 1e-3
    odd = with_other(rig, other, rig.apply([0.0, 1.0]), conds, batch=2, size=(18, 10))
    assert bool(torch.isfinite(odd).all())


@pytest.mark.promise(28, seed=0)
def test_a_lora_before_and_after(rig):
    conds, generator = rig.encode(*rig.prompts()), torch.Generator().manual_seed(0)
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"
    weight = rig.model.model.state_dict()[key]
    patches = {key: ("diff", (torch.randn(weight.shape, generator=generator) * 0.1,))}

    def with_lora(model):
        model = model.clone()
        assert model.add_patches(patches) == [key]
        return model

    after, before = with_lora(rig.apply(0.5)), rig.apply(0.5, model=with_lora(rig.model))
    plain = sample(rig, rig.apply(0.5), conds)
    one, two = sample(rig, after, conds), sample(rig, before, conds)
    assert torch.equal(one, two) and (one - plain).abs().max() > 1e-3
    assert torch.equal(sample(rig, rig.apply(0.5), conds), plain)


@pytest.mark.promise(35, seed=0)
def test_a_compiled_model_gives_what_the_plain_one_gives_at_every_gamma(rig):
    """With the node TorchCompileModel's own helper; the backend `eager` traces as all do, and needs no C++ compiler."""
    compiled = importlib.import_module("comfy_api.torch_helpers").set_torch_compile_wrapper
    conds = rig.encode(*rig.prompts())
    counters = importlib.import_module("torch._dynamo.utils").counters
    counters.clear()
    for gammas in ([0.0, 0.5, 1.0], [0.2, 0.7, 1.0]):
        plain = rig.apply(gammas)
        traced = plain.clone()
        compiled(model=traced, backend="eager")
        wanted = sample(rig, plain, conds, batch=3)
        assert (sample(rig, traced, conds, batch=3) - wanted).abs().max() <= 1e-5
    assert counters["stats"]["unique_graphs"] > 0
    assert (wanted - sample(rig, rig.model, conds, batch=3)).abs().max() > 1e-2


@pytest.mark.promise(35, seed=0)
def test_what_was_compiled_for_one_graph_never_serves_another(rig):
    """ComfyUI's node has the compiler not look at patches again, so code of another form would do, wrongly."""
    compiled = importlib.import_module("comfy_api.torch_helpers").set_torch_compile_wrapper

    def skip(guards):
        return ["transformer_options" not in guard.name for guard in guards]

    conds, mask = rig.encode(*rig.prompts()), torch.linspace(0, 1, 16)[None, :, None].expand(1, 16, 16)
    forms = [
        rig.model,
        rig.apply(0.3),
        rig.apply(1.0),
        rig.apply(0.6, attention_mask=mask),
        rig.apply(0.0),
        rig.apply(0.6, attention_mask=mask, strength=0.4),
        rig.apply([0.1, 0.9]),
        rig.apply(0.3, model=rig.apply(0.9)),
        rig.apply(0.6, attention_mask=mask.flip(1)),
        rig.apply([0.9, 0.1]),
    ]
    importlib.import_module("torch._dynamo").reset()
    for plain in [*forms, *forms[:2]]:
        traced = plain.clone()
        compiled(model=traced, backend="eager", options={"guard_filter_fn": skip})
        wanted = sample(rig, plain, conds, batch=2)
        assert (sample(rig, traced, conds, batch=2) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.promise(28, seed=0)
def test_an_inpainting_mask_keeps_what_it_protects(rig):
    samplers = importlib.import_module("comfy.samplers")
    conds = rig.encode(*rig.prompts())
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    guider = samplers.CFGGuider(rig.apply(0.5))
    guider.set_conds(*conds)
    guider.set_cfg(5.0)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        out = guider.sample(
            noise,
            latent,
            samplers.ksampler("euler"),
            torch.tensor([8.0, 4.0, 0.0]),
            denoise_mask=mask,
            disable_pbar=True,
            seed=0,
        )
    assert (out[..., :4] - latent[..., :4]).abs().max() < 1e-4 < (out[..., 4:] - latent[..., 4:]).abs().max()
