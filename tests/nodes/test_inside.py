"""Recording what a run attends to, and drawing it: pictures stay the same, and maps are those of the picture shown."""

import importlib

import pytest
import torch

from flexip_model.hosts.diffusers import Condition, inject
from flexip_model.method.gate import gamma_tensor
from flexip_model.method.sites import SD15_SITES

from ..support.comfy_rig import prompt
from ..support.helpers import tiny_adapter, tiny_unet


@pytest.fixture
def watched(rig, nodes):
    """A model with FlexIP and a recording on it, and the recording."""
    return lambda model: nodes["FlexIPRecordAttention"].execute(model, rig.adapter).args


@pytest.fixture
def sampled(nodes, demo):
    """What the parts of a graph give: sample with a seed, and draw maps of a latent."""
    comfy_nodes = importlib.import_module("nodes")
    model, clip, vae, encoders, adapter, example = demo
    with torch.inference_mode():
        positive, negative, embeds = (
            nodes["FlexIPEncodeReference"]
            .execute(encoders, adapter, example, prompt(clip, "a cat"), prompt(clip, ""), "center")
            .args
        )
        applied = nodes["FlexIPApply"].execute(model, adapter, 0.5, 1.0, 0.0, 1.0).args[0]
        recorded, recording = nodes["FlexIPRecordAttention"].execute(applied, adapter).args

    class Parts:
        plain, model, embeds_ = applied, recorded, embeds

        @staticmethod
        @torch.inference_mode()
        def sample(model=recorded, seed=2, batch=1, sampler="ddim"):
            latent = {"samples": torch.zeros(batch, 4, 8, 8)}
            return comfy_nodes.common_ksampler(model, seed, 3, 5.0, sampler, "normal", positive, negative, latent)[0]

        @staticmethod
        @torch.inference_mode()
        def draw(latent, images=None, branch="all", kind="both", first=1, last=0, **more):
            images = vae.decode(latent["samples"]) if images is None else images
            return (
                nodes["FlexIPAttentionMaps"]
                .execute(images, latent, recording, branch, kind, first, last, **more)
                .args[0]
            )

    return Parts


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_both_hosts_see_the_same_and_watching_changes_nothing(rig, watched, gamma):
    positive, negative = rig.prompts()
    features = rig.features()
    tokens = rig.encode(positive, negative, features)
    model, recording = watched(rig.apply(gamma))
    calls, plain = rig.calls(model, *tokens, batch=2), rig.calls(rig.apply(gamma), *tokens, batch=2)
    assert torch.equal(calls[0].out, plain[0].out)
    (look,) = recording.runs
    assert (look.record.steps, look.record.pictures, look.problem) == (1, 2, "")

    host = inject(tiny_unet(0), tiny_adapter(0))
    text = positive[0][0]
    p, s = host.adapter.preservation(features), host.adapter.personalization(text, features.cls)
    host.condition = Condition(p.expand(2, -1, -1), s.expand(2, -1, -1), gamma_tensor(gamma))
    first = 2 * calls[0].conds.index(0)
    with torch.no_grad(), host.watch() as record:
        rows = slice(first, first + 2)
        host.unet(calls[0].x[rows], calls[0].timesteps[rows], encoder_hidden_states=text.expand(2, -1, -1))
    for site in SD15_SITES:
        for picture in (0, 1):
            wanted, found = record.at(1, site, picture), look.record.at(1, site, picture)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    assert look.record.mean().missing == record.mean().missing == (("s", "s_start") if gamma == 1 else ())


def test_a_model_without_a_recording_never_looks(rig, watched, monkeypatch):
    def never(*_, **__):
        raise AssertionError("looked at")

    look = rig.part("nodes.patch.look")
    for name in ("add", "begin_forward", "rows"):
        monkeypatch.setattr(look.Look, name, never)
    tokens = rig.encode(*rig.prompts())
    rig.calls(rig.apply(0.5), *tokens)
    with pytest.raises(AssertionError, match="looked at"):
        rig.calls(watched(rig.apply(0.5))[0], *tokens)


def test_maps_of_the_picture_that_is_shown_whatever_ran_since(sampled):
    first = sampled.sample(seed=2)
    alone = sampled.draw(first)
    assert torch.equal(first["samples"], sampled.sample(sampled.plain, seed=2)["samples"])
    second = sampled.sample(seed=3)
    assert torch.equal(sampled.draw(first), alone)
    assert not torch.equal(sampled.draw(second), alone)
    half = {"samples": first["samples"].half()}
    assert torch.equal(sampled.draw(half, images=torch.zeros(1, 64, 64, 3))[0, -40:], alone[0, -40:])


def test_a_latent_of_no_recorded_run_is_refused(sampled):
    first = sampled.sample(seed=2)
    for wrong in (sampled.sample(sampled.plain, seed=9), {"samples": first["samples"] * 2}):
        with pytest.raises(ValueError, match="no run that was recorded made this latent"):
            sampled.draw(wrong)
    for seed in range(3, 7):
        sampled.sample(seed=seed)
    with pytest.raises(ValueError, match="change the sampler's seed"):
        sampled.draw(first)


def test_what_is_shown_can_be_chosen(sampled):
    latent = sampled.sample()
    whole = sampled.draw(latent)
    assert whole.ndim == 4 and whole.shape[3] == 3 and whole.min() >= 0 and whole.max() <= 1
    one = sampled.draw(latent, branch="CLS", kind="contributions")
    assert one.shape[1] < whole.shape[1] and one.shape[2] < whole.shape[2]
    assert not torch.equal(sampled.draw(latent, first=3), whole)
    assert not torch.equal(sampled.draw(latent, layers="mid"), whole)
    with_reference = sampled.draw(latent, embeds=sampled.embeds_)
    assert with_reference.shape[1] > whole.shape[1]
    for settings, message in (
        ({"layers": "head"}, 'no block "head"'),
        ({"last": 4}, "steps 1 to 4 were asked for and 3"),
        ({"images": torch.zeros(2, 64, 64, 3)}, "2 pictures and the recorded run made 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sampled.draw(latent, **settings)


def test_a_batch_has_a_line_per_picture(sampled):
    latent = sampled.sample(batch=2)
    assert sampled.draw(latent).shape[1] > 1.9 * sampled.draw(sampled.sample()).shape[1]


def test_another_adapters_embeds_are_refused(sampled):
    dataclasses = importlib.import_module("dataclasses")
    other = dataclasses.replace(sampled.embeds_, tag="other")
    with pytest.raises(ValueError, match="of another adapter"):
        sampled.draw(sampled.sample(), embeds=other)


def test_areas_have_no_maps_and_the_picture_is_drawn(rig, watched):
    positive, negative = rig.prompts()
    tokens = rig.encode([[positive[0][0], {"area": (4, 4, 0, 0), "strength": 1.0}]], negative)
    model, recording = watched(rig.apply(0.5))
    rig.calls(model, *tokens)
    with pytest.raises(ValueError, match=r"no maps of this picture.*areas, tiles"):
        recording.of(recording.runs[0].result)


def test_a_range_of_apply_keeps_the_steps_numbers(rig, watched):
    model, recording = watched(rig.apply(0.5, start=0.6))
    rig.calls(model, *rig.encode(*rig.prompts()), sigmas=(10.0, 5.0, 0.5, 0.0))
    record = recording.runs[0].record
    assert record.steps == 3 and record.at(3, SD15_SITES[0]).shape[0] == 2
    with pytest.raises(ValueError, match="nothing was seen"):
        record.at(1, SD15_SITES[0])


def test_a_compiled_model_is_seen_as_the_plain_one_in_every_run(rig, watched):
    """With ComfyUI's own helper and its filter, by which the compiler does not look at patches again."""
    compiled = importlib.import_module("comfy_api.torch_helpers").set_torch_compile_wrapper

    def skip(guards):
        return ["transformer_options" not in guard.name for guard in guards]

    tokens = rig.encode(*rig.prompts())
    importlib.import_module("torch._dynamo").reset()
    for gamma in (0.3, 0.8):
        model, wanted = watched(rig.apply(gamma))
        plain = rig.calls(model, *tokens)[0].out
        for recorded in (False, True, True):
            traced, found = watched(rig.apply(gamma)) if recorded else (rig.apply(gamma), None)
            traced = traced.clone()
            compiled(model=traced, backend="eager", options={"guard_filter_fn": skip})
            assert (rig.calls(traced, *tokens)[0].out - plain).abs().max() <= 1e-5
            if found is not None:
                for site in SD15_SITES:
                    own, other = (held.runs[0].record.at(1, site) for held in (found, wanted))
                    torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-3)
