"""FlexIP among ComfyUI's own nodes: control, regions, frames, tiles, many runs, compiling, unloading."""

from __future__ import annotations

import gc
import importlib
import json
import weakref

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from ...support.comfy_rig import difference
from ...support.helpers import CHANNELS
from ...support.paths import ROOT
from .test_beside_others import node, sample


def scrambled(module: torch.nn.Module, scale: float = 0.05) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return module.eval().requires_grad_(False)


def with_control(rig, conds):
    """Both conds with a ControlNet of the model's own structure."""
    ldm, control, sd = (importlib.import_module(name) for name in ("comfy.cldm.cldm", "comfy.controlnet", "comfy.ops"))
    unet = dict(rig.model.model.model_config.unet_config)
    for key in ("out_channels", "transformer_depth_output", "image_size"):
        unet.pop(key, None)
    module = ldm.ControlNet(
        **{**unet, "image_size": 32, "hint_channels": 3, "dtype": torch.float32}, operations=sd.disable_weight_init
    )
    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.num_groups = 32
    net = control.ControlNet(scrambled(module), load_device=torch.device("cpu"))
    apply = importlib.import_module("nodes").ControlNetApplyAdvanced()
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(4))
    return apply.apply_controlnet(*conds, net, hint, 1.0, 0.0, 1.0)


def with_gligen(rig, conds):
    """The positive prompt with a box that holds a text."""
    gligen, patcher = importlib.import_module("comfy.gligen"), importlib.import_module("comfy.model_patcher")
    widths = [CHANNELS[level] for level in (0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0)]
    torch.manual_seed(0)
    fusers = [gligen.GatedSelfAttentionDense(width, 48, 4, width // 4) for width in widths]
    for fuser in fusers:
        scrambled(fuser)
    model = gligen.Gligen(fusers, scrambled(gligen.PositionNet(48, 48)), 48)
    cpu = torch.device("cpu")
    managed = patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    boxes = ("position", managed, [(rig.text(1, 30)[:, 0], 4, 4, 2, 2)])
    return [[conds[0][0][0], {**conds[0][0][1], "gligen": boxes}]], conds[1]


def lora(rig, scale=0.5):
    """A LoRA in the file's own keys, for one layer of the model."""
    generator = torch.Generator().manual_seed(0)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    width = CHANNELS[0]
    return {
        f"{name}.lora_up.weight": torch.randn(width, 4, generator=generator) * scale,
        f"{name}.lora_down.weight": torch.randn(4, width, generator=generator) * scale,
        f"{name}.alpha": torch.tensor(4.0),
    }


def with_hooks(rig, conds):
    """Both prompts with a LoRA that acts on their forwards alone."""
    hooks = importlib.import_module("comfy.hooks")
    group = hooks.create_hook_lora(lora(rig), 1.0, 0.0)
    return tuple(hooks.set_hooks_for_conditioning(cond, group) for cond in conds)


def inpainting_model(rig, folder):
    """A UNet of nine input channels, with the picture and mask that it wants beside the noise."""
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True)
        for file in (rig.folder / part).iterdir():
            (folder / part / file.name).write_bytes(file.read_bytes())
    config, weights = folder / "unet" / "config.json", folder / "unet" / "diffusion_pytorch_model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    tensors = load_file(weights)
    more = torch.randn(CHANNELS[0], 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    tensors["conv_in.weight"] = torch.cat([tensors["conv_in.weight"], more], 1)
    save_file(tensors, weights)
    return rig.part("nodes.loading.diffusers_folder").load_unet(folder)


def inpainting(rig, conds):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    return tuple(
        [[text, {**extras, "concat_latent_image": latent, "concat_mask": mask}] for text, extras in cond]
        for cond in conds
    )


def merged(rig, model):
    """ModelMergeSimple of the model with a changed one."""
    other = rig.model.clone()
    key = "diffusion_model.middle_block.1.proj_in.weight"
    other.add_patches({key: ("diff", (torch.ones_like(rig.model.model.state_dict()[key]) * 0.1,))})
    return node("nodes_model_merging", "ModelMergeSimple")().merge(model, other, 0.5)[0]


@pytest.mark.promise(28, seed=0)
@pytest.mark.parametrize("other", ["ControlNet", "GLIGEN", "hooks", "inpainting model", "merge after", "merge before"])
def test_beside_nodes_of_control(rig, tmp_path, other, figures):
    base = inpainting_model(rig, tmp_path) if other == "inpainting model" else rig.model
    conds = rig.encode(*rig.prompts())
    change = {"ControlNet": with_control, "GLIGEN": with_gligen, "hooks": with_hooks, "inpainting model": inpainting}
    changed = change[other](rig, conds) if other in change else conds
    if other.startswith("merge"):
        base = merged(rig, rig.model)

    def patched(strength):
        if other == "merge after":
            return merged(rig, rig.apply(0.5, strength=strength))
        return rig.apply(0.5, model=base, strength=strength)

    size = (8, 8)
    plain, silent, ours = (sample(rig, model, changed, size=size) for model in (base, patched(0.0), patched(1.0)))
    assert torch.equal(silent, plain)
    effect = float((ours - plain).abs().max())
    assert bool(torch.isfinite(ours).all()) and effect > 1e-2
    # The other node acts too, with FlexIP.
    alone = sample(rig, rig.apply(0.5) if other != "inpainting model" else rig.apply(0.5, model=base), conds, size=size)
    assert difference([ours], [alone]) > 1e-4
    figures.cases(28, 1, 1, other)
    figures.worst(28, effect, "smallest effect", lowest=True)


def denoised(rig, model, conds, sigmas=(5.0, 0.0), **settings) -> list[torch.Tensor]:
    """What each step makes of the conds together."""
    seen: list[torch.Tensor] = []
    rig.calls(model, *conds, sigmas=sigmas, callback=lambda i, x0, *_: seen.append(x0.clone()), **settings)
    return seen


@pytest.mark.promise(29, seed=0)
@pytest.mark.parametrize("how", ["masks", "areas"])
def test_two_regions_with_two_references(rig, how, figures):
    """Another reference for the right half changes nothing in the left half of a forward's result."""
    positive, negative = rig.prompts()
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    places = {"masks": ({"mask": left}, {"mask": 1 - left}), "areas": ({"area": (8, 4, 0, 0)}, {"area": (8, 4, 0, 4)})}

    def run(reference):
        both = []
        for place, seed in zip(places[how], (1, reference), strict=True):
            cond, null = rig.encode(positive, negative, rig.features(seed=seed))
            both.append([cond[0][0], {**cond[0][1], **place}])
        return denoised(rig, rig.apply(0.8), (both, null))[0]

    change = (run(2) - run(3)).abs()
    outside, inside = float(change[..., :4].max()), float(change[..., 4:].max())
    figures.worst(29, outside, f"change outside, {how}")
    figures.worst(29, inside, f"change inside, {how}", lowest=True)
    assert outside <= 1e-6 and inside > 1e-2


@pytest.mark.promise(30, seed=0)
@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform"])
def test_32_frames_in_windows_of_16_keep_their_gamma_and_mask(rig, schedule, figures):
    windows = importlib.import_module("comfy.context_windows")
    gammas = torch.linspace(0, 1, 32).tolist()
    masks = torch.linspace(1, 0.3, 32)[:, None, None].expand(32, 8, 8)
    conds, model = rig.encode(*rig.prompts()), rig.apply(gammas, attention_mask=masks)
    split = model.clone()
    split.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(schedule),
        fuse_method=windows.get_matching_fuse_method("flat"),
        context_length=16,
        context_overlap=4,
        dim=0,
    )

    class Enough(Exception):
        pass

    def frames(model):
        """What the first two steps give; there are as many sigmas as frames, because older hosts compare the two."""
        seen: list[torch.Tensor] = []

        def keep(step, x0, *_):
            seen.append(x0.clone())
            if step == 1:
                raise Enough

        with pytest.raises(Enough):
            rig.calls(model, *conds, sigmas=(5.0, 2.0, *torch.linspace(1, 0, 30).tolist()), batch=32, callback=keep)
        return seen

    whole, parts = frames(model), frames(split)
    apart = [float((a - b).abs().max()) for x, y in zip(whole, parts, strict=True) for a, b in zip(x, y, strict=True)]
    wrong = sum(one > 1e-4 for one in apart)
    figures.cases(30, len(apart) - wrong, len(apart), "frames of steps")
    figures.worst(30, max(apart), "largest difference to all frames at once")
    assert wrong == 0 and difference([whole[0][:-1]], [whole[0][1:]]) > 1e-4


@pytest.mark.promise(31, seed=0)
def test_four_tiles_are_right_without_a_mask_and_the_page_warns_of_masks(rig, figures):
    """A tile is sampled by itself, as upscalers do: the model that served other tiles gives what a fresh one gives."""
    conds, one = rig.encode(*rig.prompts()), rig.apply(0.7)
    picture = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 24, 24)
    mask[:, 12:] = 0
    worst = 0.0
    for top in (0, 12):
        for left in (0, 12):
            tile = picture[..., top : top + 12, left : left + 12]
            shared, fresh = (from_latent(rig, model, conds, tile) for model in (one, rig.apply(0.7)))
            base = from_latent(rig, rig.model, conds, tile)
            part = mask[:, top : top + 12, left : left + 12]
            own = from_latent(rig, rig.apply(0.7, attention_mask=part), conds, tile)
            worst = max(worst, difference([shared], [fresh]), difference([own], [fresh if top == 0 else base]))
            assert difference([shared], [base]) > 1e-2
    page = (ROOT / "web" / "docs" / "FlexIPApply.md").read_text(encoding="utf-8")
    assert "tile by tile" in page and "leave masks out there" in page
    figures.cases(31, 4, 4, "tiles, with none and with the tile's own part of the mask")
    figures.worst(31, worst, "largest difference")
    assert worst <= 1e-4


def from_latent(rig, model, conds, latent):
    """Half of the sampling, from a latent."""
    samplers = importlib.import_module("comfy.samplers")
    guider = samplers.CFGGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(3.0)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return guider.sample(
            noise, latent, samplers.ksampler("euler"), torch.tensor([3.0, 1.0, 0.0]), disable_pbar=True, seed=0
        )


@pytest.mark.promise(32, seed=0)
def test_memory_stays_level_over_runs_with_new_references_and_gammas(rig, figures):
    process, count = psutil.Process(), figures.count(40, 200)
    warm = 10

    def one(number: int) -> None:
        conds = rig.encode(*rig.prompts(), rig.features(seed=number))
        rig.predict(rig.apply(number % 11 / 10, gamma_map=torch.rand(1, 64, 64)), *conds)

    for number in range(warm):
        one(number)
    gc.collect()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    before = process.memory_info().rss
    for number in range(warm, warm + count):
        one(number)
    gc.collect()
    grown = (process.memory_info().rss - before) / 1e6 / count
    figures.cases(32, count, count, "runs in one process")
    figures.worst(32, max(grown, 0), "growth a run", " MB")
    assert sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()) <= tensors
    assert grown <= 0.1


@pytest.mark.promise(33, seed=0)
def test_interrupts_at_every_point_leave_the_next_latent_as_it_was(rig, figures):
    management = importlib.import_module("comfy.model_management")
    conds, model, count = rig.encode(*rig.prompts()), rig.apply(0.5), figures.count(12, 50)
    site = rig.part("nodes.patch.site_patch").SitePatch
    clean = rig.predict(model, *conds)
    act, seen = site.__call__, []

    def interrupted(at: int):
        def call(self, *given):
            seen.append(1)
            if len(seen) == at:
                raise management.InterruptProcessingException
            return act(self, *given)

        return call

    worst = 0.0
    for number in range(count):
        seen.clear()
        site.__call__ = interrupted(1 + number * 37 % 48)
        try:
            with pytest.raises(management.InterruptProcessingException):
                rig.calls(model, *conds, sigmas=(8.0, 5.0, 3.0, 1.0))
        finally:
            site.__call__ = act
        worst = max(worst, difference(rig.predict(model, *conds), clean))
    figures.cases(33, count, count, "interrupts inside the model's forward")
    figures.worst(33, worst, "largest difference of what comes next")
    assert worst == 0


@pytest.mark.promise(34)
def test_turning_gamma_strength_and_range_runs_no_encoder_and_no_resampler(nodes, demo, rig, monkeypatch, figures):
    from ...support.comfy_rig import prompt

    model, clip, _, encoders, adapter, example = demo
    passes: list[str] = []
    with torch.inference_mode():
        positive, negative, _ = (
            nodes["FlexIPEncodeReference"]
            .execute(encoders, adapter, example, prompt(clip, "a cat"), prompt(clip, ""), "center")
            .args
        )
        watched = [
            encoders.encoders.clip,
            encoders.encoders.dino,
            adapter.adapter.resampler_queries,
            adapter.adapter.resampler_text,
            adapter.adapter.resampler_cls,
        ]
        handles = [part.register_forward_hook(lambda part, *_: passes.append(type(part).__name__)) for part in watched]
        settings = [(0.2, 1.0, 0.0, 1.0), (0.9, 1.0, 0.0, 1.0), (0.9, 0.4, 0.0, 1.0), (0.9, 0.4, 0.2, 0.8)]
        for setting in settings:
            patched = nodes["FlexIPApply"].execute(model, adapter, *setting).args[0]
            rig.predict(patched, positive, negative)
        for handle in handles:
            handle.remove()
    figures.cases(34, len(settings), len(settings), "settings")
    figures.worst(34, len(passes), "passes of an encoder or resampler")
    assert passes == []


@pytest.mark.promise(35, seed=0)
def test_compiling_breaks_no_graph_and_a_new_gamma_or_prompt_compiles_nothing_anew(rig, monkeypatch, figures):
    """With PyTorch's attention, as on a card: ComfyUI's own for the CPU asks the system for free memory as it runs."""
    attention = importlib.import_module("comfy.ldm.modules.attention")
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    compiled = importlib.import_module("comfy_api.torch_helpers").set_torch_compile_wrapper
    dynamo, utils = importlib.import_module("torch._dynamo"), importlib.import_module("torch._dynamo.utils")

    def traced(model, seed):
        """Graphs and graph breaks of one sampling."""
        utils.counters.clear()
        model = model.clone()
        compiled(model=model, backend="eager")
        positive, negative = [[rig.text(77, seed), {}]], [[rig.text(77, seed + 1), {}]]
        sample(rig, model, rig.encode(positive, negative, rig.features(seed=seed)), size=(8, 8))
        return utils.counters["stats"]["unique_graphs"], sum(utils.counters["graph_break"].values())

    dynamo.reset()
    graphs, breaks = traced(rig.apply(0.3), 5)
    again = [traced(rig.apply(gamma), seed) for gamma, seed in ((0.31, 5), (0.6, 5), (0.85, 7), (0.85, 9))]
    if breaks:
        dynamo.reset()
        breaks -= traced(rig.model, 5)[1]
    anew = sum(more for more, _ in again)
    figures.worst(35, breaks, "graph breaks of ours")
    figures.worst(35, graphs, "graphs of a first sampling")
    figures.worst(35, anew, "graphs compiled anew by three other γ and two other prompts")
    dynamo.reset()
    assert graphs >= 1 and breaks == 0 and anew == 0


@pytest.mark.promise(36, seed=0)
def test_boundaries_of_ranges_share_no_step_and_leave_none_out(rig, figures):
    """At 0, 0.35 and 1, with the sigmas of the samplers' own schedules, one step on the boundary itself among them."""
    samplers = importlib.import_module("comfy.samplers")
    conds, sampling = rig.encode(*rig.prompts()), rig.model.get_model_object("model_sampling")
    wrong = total = 0
    for scheduler in ("normal", "karras"):
        sigmas = samplers.calculate_sigmas(sampling, scheduler, 8)
        boundary = float(sampling.percent_to_sigma(0.35))
        sigmas = torch.cat([sigmas, torch.tensor([boundary])]).sort(descending=True).values.tolist()

        def active(start, end, sigmas=sigmas):
            calls = rig.calls(rig.apply(0.5, start=start, end=end), *conds, sigmas=sigmas)
            return [call.active for call in calls]

        early, late, whole = active(0.0, 0.35), active(0.35, 1.0), active(0.0, 1.0)
        wanted = [sigma > boundary * (1 + 1e-6) for sigma in sigmas[:-1]]
        found = [
            *zip(early, wanted, strict=True),
            *zip(late, (not on for on in wanted), strict=True),
            *((on, True) for on in whole),
        ]
        wrong += sum(a != b for a, b in found)
        total += len(found)
    figures.cases(36, total - wrong, total, "steps")
    assert wrong == 0


@pytest.mark.promise(38)
def test_what_comfyui_counts_is_what_is_there_and_all_of_it_goes(rig, figures):
    management = importlib.import_module("comfy.model_management")
    own = rig.with_tensors({key: value.clone() for key, value in rig.tensors.items()})
    conds, model = own.encode(*own.prompts()), own.apply(0.5)
    own.predict(model, *conds)
    held = sum(value.numel() * value.element_size() for value in own.adapter.adapter.state_dict().values())
    counted = own.adapter.patcher.model_size()
    loaded = [one.model for one in management.current_loaded_models]
    assert any(one.model is own.adapter.adapter for one in loaded)
    figures.worst(38, abs(counted - held), "bytes counted wrongly")
    assert counted == held
    management.unload_all_models()
    assert not any(one.model.model is own.adapter.adapter for one in management.current_loaded_models)
    gone = weakref.ref(own.adapter.adapter)
    del model, conds, own, loaded
    gc.collect()
    assert gone() is None, "the adapter's weights stay in memory"
    figures.cases(38, 1, 1, "adapters unloaded and freed")
