"""Graphs of the core's own nodes that are right and must stay so, through `/prompt` of a real server.

CI runs a selection of samplers and of nodes that change a model; `--reliability-full` runs all that the server has.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flexip_model.comfyui import ComfyClient, ComfyServer
from flexip_model.comfyui.client import Prompt

from ..support.comfy_server import api_workflow, node_of
from ..support.reliability import Figures
from .test_server_combinations import WITHOUT, Change, add, graph, latent

SAMPLERS = ("ddim", "euler_ancestral", "heun", "dpmpp_2m_sde", "uni_pc", "lcm", "dpm_adaptive", "res_multistep")
PATCHES = (
    "FreeU_V2",
    "HyperTile",
    "TomePatchModel",
    "PatchModelAddDownscale",
    "PerturbedAttentionGuidance",
    "SelfAttentionGuidance",
    "RescaleCFG",
    "ModelSamplingDiscrete",
    "DifferentialDiffusion",
    "EasyCache",
    "UNetCrossAttentionMultiply",
    "Mahiro",
)
COMPILED = "TorchCompileModel"


def of_model(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings, all at their defaults, of every core node that takes a model and widgets and gives a model."""
    found = {}
    for name, node in info.items():
        asked = node["input"].get("required", {})
        models = [key for key, (kind, *_) in asked.items() if kind == "MODEL"]
        settings = {}
        for key, (kind, *options) in asked.items():
            choices = kind if isinstance(kind, list) else options[0].get("options") if options else None
            given = options[0] if options else {}
            if "default" in given or choices:
                settings[key] = given.get("default", choices[0] if choices else None)
        core = node.get("python_module", "").split(".")[0] in ("nodes", "comfy_extras")
        plain = node["output"][:1] == ["MODEL"] and len(models) == 1 and set(asked) == {*settings, *models}
        if core and plain and name != COMPILED:
            found[name] = {models[0]: "source", **settings}
    return found


@pytest.mark.promise(28)
def test_every_sampler(server: ComfyServer, figures: Figures) -> None:
    every = server.get("/object_info/KSampler")["KSampler"]["input"]["required"]["sampler_name"]
    names = every[0] if isinstance(every[0], list) else every[1]["options"]
    names = names if figures.count(0, 1) else [name for name in SAMPLERS if name in names]
    wrong = {}
    for name in names:

        def sampler(prompt: Prompt, name: str = name) -> None:
            inputs = prompt[node_of(prompt, "KSampler")]["inputs"]
            inputs |= {"sampler_name": name, "scheduler": "normal", "steps": 3}

        without, zero, one = (latent(server, graph(strength, sampler)) for strength in (WITHOUT, 0.0, 1.0))
        if not (torch.equal(without, zero) and bool(torch.isfinite(one).all()) and (one - zero).abs().max() > 1e-2):
            wrong[name] = float((zero - without).abs().max())
    figures.cases(28, len(names) - len(wrong), len(names), "samplers")
    assert len(names) >= 7 and not wrong


@pytest.mark.promise(28)
def test_every_node_that_changes_a_model(server: ComfyServer, figures: Figures) -> None:
    """At strength 0 bit for bit the graph without FlexIP; before and after Apply FlexIP it gives one result."""
    every = of_model(server.get("/object_info"))
    names = every if figures.count(0, 1) else [name for name in PATCHES if name in every]
    wrong, tried = {}, 0
    for name in names:
        first, last = (add(name, before, "model", **every[name]) for before in ("FlexIPApply", "KSampler"))
        alone = graph(WITHOUT, last)
        if ComfyClient(server.url).run(alone).status != "success":
            continue  # a node for another architecture
        tried += 1
        without = latent(server, alone)
        zero, ours, theirs = (latent(server, graph(s, where)) for s, where in ((0.0, last), (1.0, last), (1.0, first)))
        apart = float((ours - theirs).abs().max() / ours.abs().max())
        if not torch.equal(zero, without) or not apart < 1e-4 or not (ours - zero).abs().max() > 1e-2:
            wrong[name] = (float((zero - without).abs().max()), apart)
    figures.cases(28, tried - len(wrong), tried, "nodes that change a model, before and after")
    assert tried >= 10 and not wrong


def halves(prompt: Prompt) -> None:
    """Masks of the left and the right half."""
    size = {"width": 128, "height": 128}
    prompt |= {
        "black": {"class_type": "SolidMask", "inputs": {"value": 0.0, **size}},
        "white": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 128}},
        "left": {
            "class_type": "MaskComposite",
            "inputs": {"destination": ["black", 0], "source": ["white", 0], "x": 0, "y": 0, "operation": "add"},
        },
        "right": {"class_type": "InvertMask", "inputs": {"mask": ["left", 0]}},
    }


def second_subject(prompt: Prompt) -> tuple[str, str]:
    """Another Encode Reference, of another picture; the ids of both."""
    first = node_of(prompt, "FlexIPEncodeReference")
    prompt["picture"] = {"class_type": "FlexIPExampleImage", "inputs": {"example": "tomato.webp"}}
    prompt["second"] = {
        "class_type": "FlexIPEncodeReference",
        "inputs": {**prompt[first]["inputs"], "image": ["picture", 0]},
    }
    return first, "second"


def positive(prompt: Prompt, source: list) -> Prompt:
    prompt[node_of(prompt, "KSampler")]["inputs"]["positive"] = source
    return prompt


@pytest.mark.promise(29)
def test_two_subjects_by_masks_and_combine_are_each_alone_in_its_half(server: ComfyServer) -> None:
    """In one Euler step the denoised latent of a half is that of its subject alone."""

    def made(which: str) -> torch.Tensor:
        prompt = graph(1.0, steps=1)
        inputs = prompt[node_of(prompt, "KSampler")]["inputs"]
        inputs |= {"sampler_name": "euler", "scheduler": "normal"}
        halves(prompt)
        places = dict(zip(("left", "right"), second_subject(prompt), strict=True))
        for side, encode in places.items():
            prompt[f"in the {side}"] = {
                "class_type": "ConditioningSetMask",
                "inputs": {"conditioning": [encode, 0], "mask": [side, 0], "strength": 1.0, "set_cond_area": "default"},
            }
        prompt["both"] = {
            "class_type": "ConditioningCombine",
            "inputs": {"conditioning_1": ["in the left", 0], "conditioning_2": ["in the right", 0]},
        }
        return latent(server, positive(prompt, [places.get(which, which), 0]))

    both, left, right = (made(which) for which in ("both", "left", "right"))
    apart = (both[..., :8] - left[..., :8], both[..., 8:] - right[..., 8:])
    assert max(float(part.abs().max()) for part in apart) < 1e-4  # the batch is another one
    assert (left - right).abs().max() > 1e-2


@pytest.mark.promise(36)
def test_a_subject_that_changes_at_half_is_two_samplers_that_hand_over(server: ComfyServer) -> None:
    ranged, handed = graph(1.0, steps=6), graph(1.0, steps=6)
    first, second = second_subject(ranged)
    for encode, start, end in ((first, 0.0, 0.5), (second, 0.5, 1.0)):
        ranged[f"from {start}"] = {
            "class_type": "ConditioningSetTimestepRange",
            "inputs": {"conditioning": [encode, 0], "start": start, "end": end},
        }
    ranged["both"] = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["from 0.0", 0], "conditioning_2": ["from 0.5", 0]},
    }
    first, second = second_subject(handed)
    sampler = node_of(handed, "KSampler")
    given = handed.pop(sampler)["inputs"]
    shared = {key: given[key] for key in ("model", "negative", "cfg", "sampler_name", "scheduler", "steps")}
    for name, encode, source, start, end in (
        ("begin", first, given["latent_image"], 0, 3),
        (sampler, second, ["begin", 0], 3, 10000),
    ):
        handed[name] = {
            "class_type": "KSamplerAdvanced",
            "inputs": {
                **shared,
                "noise_seed": given["seed"],
                "positive": [encode, 0],
                "latent_image": source,
                "start_at_step": start,
                "end_at_step": end,
                "add_noise": "enable" if start == 0 else "disable",
                "return_with_leftover_noise": "enable" if start == 0 else "disable",
            },
        }
    apart = latent(server, positive(ranged, ["both", 0])) - latent(server, handed)
    assert float(apart.abs().max()) < 1e-4


@pytest.fixture(scope="module")
def lora(server: ComfyServer) -> str:
    """The name of a LoRA that changes a layer of each kind of the model that ships."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    layers = {
        "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q": (64, 64),
        "mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (64, 128),
        "up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_v": (96, 96),
    }
    for name, (outputs, inputs) in layers.items():
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(outputs, 4, generator=generator) * 0.3
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, inputs, generator=generator) * 0.3
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(4.0)
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "some.safetensors")
    return "some.safetensors"


def one_result(server: ComfyServer, after: Change, before: Change) -> None:
    """Both orders give one latent, in which both act; at strength 0 it is that of the graph without FlexIP."""
    without, zero, one, two, plain = (
        latent(server, graph(*given)) for given in ((WITHOUT, after), (0.0, after), (1.0, after), (1.0, before), (1.0,))
    )
    assert torch.equal(zero, without) and torch.equal(one, two)
    assert (one - plain).abs().max() > 1e-3 and (one - zero).abs().max() > 1e-2


@pytest.mark.promise(28)
def test_a_lora_before_and_after_is_one_result(server: ComfyServer, lora: str) -> None:
    settings = {"model": "source", "lora_name": lora, "strength_model": 1.0}
    one_result(server, *(add("LoraLoaderModelOnly", at, "model", **settings) for at in ("KSampler", "FlexIPApply")))


@pytest.mark.promise(28)
def test_a_lora_as_a_hook_of_the_prompts_before_and_after_is_one_result(server: ComfyServer, lora: str) -> None:
    def hooked(place: str) -> Change:
        def change(prompt: Prompt) -> None:
            target = node_of(prompt, place)
            inputs = prompt[target]["inputs"]
            prompt["hook"] = {
                "class_type": "CreateHookLoraModelOnly",
                "inputs": {"lora_name": lora, "strength_model": 1.0},
            }
            prompt["hooked"] = {
                "class_type": "PairConditioningSetProperties",
                "inputs": {
                    "positive_NEW": inputs["positive"],
                    "negative_NEW": inputs["negative"],
                    "strength": 1.0,
                    "set_cond_area": "default",
                    "hooks": ["hook", 0],
                },
            }
            inputs |= {"positive": ["hooked", 0], "negative": ["hooked", 1]}

        return change

    one_result(server, hooked("KSampler"), hooked("FlexIPEncodeReference"))


@pytest.mark.promise(13)
def test_a_second_subject_over_the_first_is_refused(server: ComfyServer) -> None:
    prompt = api_workflow("flexip_basic")
    first, second = second_subject(prompt)
    prompt[second]["inputs"] |= {"positive": [first, 0], "negative": [first, 1]}
    result = ComfyClient(server.url).run(positive(prompt, [second, 0]))
    assert result.status == "error" and "already carries a subject" in result.error


@pytest.mark.promise(22)
@pytest.mark.idle
def test_a_run_that_leaves_flexip_out_is_told_in_the_log_and_on_the_samplers_node(server: ComfyServer) -> None:
    """Its prompts were active in another part of the sampling."""
    prompt = graph(1.0, steps=4, end=0.3)
    encode = node_of(prompt, "FlexIPEncodeReference")
    ends = {"conditioning": [encode, 0], "start": 0.6, "end": 1.0}
    prompt["late"] = {"class_type": "ConditioningSetTimestepRange", "inputs": ends}
    prompt["early"] = {
        "class_type": "ConditioningSetTimestepRange",
        "inputs": {**ends, "conditioning": prompt[encode]["inputs"]["positive"], "start": 0.0, "end": 0.6},
    }
    prompt["both"] = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["late", 0], "conditioning_2": ["early", 0]},
    }
    sampler = node_of(prompt, "KSampler")
    prompt[sampler]["inputs"]["negative"] = prompt[encode]["inputs"]["negative"]
    result = ComfyClient(server.url).run(positive(prompt, ["both", 0]))
    assert result.status == "success", result.error
    assert "no prompt that carries its tokens was active" in server.log_tail()
    assert [node for node, text in result.texts if "no prompt that carries its tokens" in text] == [sampler]
