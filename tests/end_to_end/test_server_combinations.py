"""What people combine, as graphs in API form through `/prompt` of a real server, with the model that ships.

Every case asks for two things: at strength 0 the latent is that of the graph without FlexIP, bit for bit; at strength 1
it is another one, and finite. Latents come back through the core's SaveLatent.
"""

from __future__ import annotations

import io
import json
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch
from PIL import Image, ImageChops, ImageStat
from safetensors.torch import load_file

from flexip_model.comfyui import ComfyClient, ComfyServer
from flexip_model.comfyui.client import Prompt

from ..support.comfy_server import api_workflow, comfyui_path, node_of
from ..support.reliability import Figures

Change = Callable[[Prompt], None]
SAVED = "saved latent"
WITHOUT = None
"""In place of a strength: the graph without FlexIP."""


def graph(strength: float | None = 1.0, *changes: Change, steps: int = 2, **settings: Any) -> Prompt:
    """The workflow of one picture with few steps, saved as a latent, after these changes to it."""
    prompt = api_workflow("flexip_basic")
    sampler, apply, encode = (node_of(prompt, kind) for kind in ("KSampler", "FlexIPApply", "FlexIPEncodeReference"))
    prompt[sampler]["inputs"]["steps"] = steps
    prompt[SAVED] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": [sampler, 0], "filename_prefix": "latents/combination"},
    }
    prompt[apply]["inputs"] |= {"gamma": 0.6, **settings}
    for change in changes:
        change(prompt)
    if strength is not None:
        prompt[apply]["inputs"]["strength"] = strength
        return prompt
    bare = {(apply, 0): prompt[apply]["inputs"]["model"]}
    bare |= {(encode, i): prompt[encode]["inputs"][key] for i, key in enumerate(("positive", "negative"))}
    for node in prompt.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and tuple(value) in bare:
                node["inputs"][key] = bare[tuple(value)]
    del prompt[apply], prompt[encode]
    return prompt


def latent(server: ComfyServer, prompt: Prompt) -> torch.Tensor:
    """Run it; the latent that it saved, (B, C, H, W). What newer nodes ask for besides has its default."""
    for node in prompt.values():
        kind = node["class_type"]
        asked = server.get(f"/object_info/{urllib.parse.quote(kind)}")[kind]["input"].get("required", {})
        for key, (_, *options) in asked.items():
            if key not in node["inputs"] and options and "default" in options[0]:
                node["inputs"][key] = options[0]["default"]
    result = ComfyClient(server.url).run(prompt)
    assert result.status == "success", f"{result.error}\n{server.log_tail()}"
    (place,) = result.outputs[SAVED]["latents"]
    return load_file(server.base / "output" / place["subfolder"] / place["filename"])["latent_tensor"]


def add(kind: str, before: str, key: str, output: int = 0, **inputs: Any) -> Change:
    """A node of the core between a node's input and what was connected to it."""

    def change(prompt: Prompt) -> None:
        target = node_of(prompt, before)
        source = prompt[target]["inputs"][key]
        prompt[kind] = {"class_type": kind, "inputs": {k: source if v == "source" else v for k, v in inputs.items()}}
        prompt[target]["inputs"][key] = [kind, output]

    return change


def size(width: int, height: int, batch: int = 1) -> Change:
    """Another latent."""

    def change(prompt: Prompt) -> None:
        prompt[node_of(prompt, "EmptyLatentImage")]["inputs"] |= {"width": width, "height": height, "batch_size": batch}

    return change


def steps_of(steps: int) -> Change:
    def change(prompt: Prompt) -> None:
        prompt[node_of(prompt, "KSampler")]["inputs"]["steps"] = steps

    return change


def second_pass(prompt: Prompt) -> None:
    """The latent half as large again, sampled once more by the same model and prompts."""
    sampler = node_of(prompt, "KSampler")
    prompt["larger"] = {
        "class_type": "LatentUpscale",
        "inputs": {
            "samples": [sampler, 0],
            "upscale_method": "bilinear",
            "width": 184,
            "height": 216,
            "crop": "disabled",
        },
    }
    inputs = {**prompt[sampler]["inputs"], "latent_image": ["larger", 0], "denoise": 0.6, "steps": 4}
    prompt["again"] = {"class_type": "KSampler", "inputs": inputs}
    prompt[SAVED]["inputs"]["samples"] = ["again", 0]


CASES: dict[str, tuple[Change, ...]] = {
    "batch of 1": (),
    "batch of 2": (size(128, 128, 2),),
    "batch of 3": (size(128, 128, 3),),
    "batch of 5": (size(128, 128, 5),),
    "odd size, wide": (size(200, 88),),
    "odd size, high, batch of 2": (size(72, 168, 2),),
    "second pass at another size": (second_pass,),
    # ComfyUI 0.3.75 compares a batch's sigmas with the schedule's one by one: as many frames as sigmas, or an error.
    "context windows": (
        size(128, 128, 6),
        steps_of(5),
        add(
            "ContextWindowsManual",
            "KSampler",
            "model",
            model="source",
            context_length=4,
            context_overlap=1,
            context_schedule="standard_static",
            context_stride=1,
            closed_loop=False,
            fuse_method="pyramid",
            dim=0,
        ),
    ),
    "FreeU after": (add("FreeU_V2", "KSampler", "model", model="source", b1=1.3, b2=1.4, s1=0.9, s2=0.2),),
    "HyperTile before": (
        add(
            "HyperTile",
            "FlexIPApply",
            "model",
            model="source",
            tile_size=64,
            swap_size=2,
            max_depth=0,
            scale_depth=False,
        ),
    ),
}


def acts_at_strength_one_alone(server: ComfyServer, *changes: Change) -> torch.Tensor:
    """Compare the graph without FlexIP with strength 0 and 1; returns the latent at 1."""
    without, zero, one = (latent(server, graph(strength, *changes)) for strength in (WITHOUT, 0.0, 1.0))
    assert torch.equal(zero, without), float((zero - without).abs().max())
    assert bool(torch.isfinite(one).all())
    assert one.shape == without.shape and float((one - without).abs().max()) > 1e-2
    return one


@pytest.mark.promise(28)
@pytest.mark.parametrize("name", CASES)
def test_combination(server: ComfyServer, name: str) -> None:
    acts_at_strength_one_alone(server, *CASES[name])


def test_the_hosts_curve_editor_is_gamma_over_the_steps(server: ComfyServer) -> None:
    """Connected in place of the text; a host without a curve editor offers the text alone."""
    takes = server.get("/object_info/FlexIPApply")["FlexIPApply"]["input"]["optional"]["curve"][0]
    if "CurveEditor" not in server.get("/object_info"):
        assert takes == "STRING"
        return

    def drawn(prompt: Prompt) -> None:
        curve = {"points": [[0.0, 0.9], [0.5, 0.4], [1.0, 0.0]], "interpolation": "linear"}
        prompt["curve"] = {"class_type": "CurveEditor", "inputs": {"curve": curve}}
        prompt[node_of(prompt, "FlexIPApply")]["inputs"]["curve"] = ["curve", 0]

    assert takes == "STRING,CURVE"
    typed = latent(server, graph(1.0, steps=4, curve="0:0.9, 0.5:0.4, 1:0"))
    assert float((latent(server, graph(1.0, drawn, steps=4)) - typed).abs().max()) < 1e-3
    assert float((latent(server, graph(1.0, steps=4)) - typed).abs().max()) > 1e-2


@pytest.mark.promise(14)
def test_each_picture_of_a_batch_is_the_one_that_comes_alone(server: ComfyServer) -> None:
    batch = latent(server, graph(1.0, size(128, 128, 5)))
    for index in (0, 3):
        alone = add("LatentFromBatch", "KSampler", "latent_image", samples="source", batch_index=index, length=1)
        assert float((latent(server, graph(1.0, size(128, 128, 5), alone)) - batch[index]).abs().max()) < 1e-3


@pytest.mark.promise(30)
def test_a_sweep_in_context_windows_is_the_sweep(server: ComfyServer) -> None:
    """Frames from one noise, each with its γ: windows change what is computed together, not what comes out."""

    def sweep(*changes: Change) -> torch.Tensor:
        prompt = api_workflow("flexip_gamma_sweep")
        sampler, gammas = node_of(prompt, "KSampler"), node_of(prompt, "FlexIPGammaSweep")
        prompt[sampler]["inputs"]["steps"] = 8
        prompt[gammas]["inputs"]["gammas"] = "0:1:0.125"
        prompt[SAVED] = {
            "class_type": "SaveLatent",
            "inputs": {"samples": [sampler, 0], "filename_prefix": "latents/sweep"},
        }
        for change in changes:
            change(prompt)
        return latent(server, prompt)

    windows = add(
        "ContextWindowsManual",
        "KSampler",
        "model",
        model="source",
        context_length=4,
        context_overlap=2,
        context_schedule="standard_static",
        context_stride=1,
        closed_loop=False,
        fuse_method="flat",
        dim=0,
    )
    whole = sweep()
    assert len(whole) == 9
    assert float((sweep(windows) - whole).abs().max()) < 1e-3
    assert float((whole[0] - whole[-1]).abs().max()) > 0.1


@pytest.mark.promise(28)
def test_a_connected_integer_or_list_is_gamma(server: ComfyServer) -> None:
    """An integer is a γ; a list that runs a node several times (the editor's lists) runs it once for each γ."""

    def integer(prompt: Prompt) -> None:
        prompt["number"] = {"class_type": "PrimitiveInt", "inputs": {"value": 1}}
        prompt[node_of(prompt, "FlexIPApply")]["inputs"]["gamma"] = ["number", 0]

    assert torch.equal(latent(server, graph(1.0, integer)), latent(server, graph(1.0, gamma=1.0)))
    prompt = api_workflow("flexip_gamma_sweep")
    prompt["number"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 0.25}}
    prompt[node_of(prompt, "FlexIPGammaSweep")]["inputs"]["gammas"] = ["number", 0]
    prompt[node_of(prompt, "KSampler")]["inputs"]["steps"] = 1
    assert ComfyClient(server.url).run(prompt).status == "success"


@pytest.mark.promise(28)
@pytest.mark.parametrize(("sampler", "scheduler"), [("ddim", "ddim_uniform"), ("euler", "normal")])
def test_a_sweep_of_an_inpainting_has_one_noise(server: ComfyServer, sampler: str, scheduler: str) -> None:
    prompt = api_workflow("flexip_gamma_sweep")
    sweep, draw = node_of(prompt, "FlexIPGammaSweep"), node_of(prompt, "KSampler")
    prompt["left"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 128}}
    prompt["none"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 128}}
    prompt["mask"] = {
        "class_type": "MaskComposite",
        "inputs": {"destination": ["none", 0], "source": ["left", 0], "x": 0, "y": 0, "operation": "add"},
    }
    prompt["masked"] = {
        "class_type": "SetLatentNoiseMask",
        "inputs": {"samples": prompt[sweep]["inputs"]["latent"], "mask": ["mask", 0]},
    }
    prompt[sweep]["inputs"] |= {"latent": ["masked", 0], "gammas": "1, 1, 0"}
    prompt[draw]["inputs"] |= {"sampler_name": sampler, "scheduler": scheduler, "steps": 3}
    prompt[SAVED] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": [draw, 0], "filename_prefix": "latents/inpainting"},
    }
    one, same, other = latent(server, prompt)
    assert float((one - same).abs().max()) < 1e-4 and float((one - other).abs().max()) > 1e-2


@pytest.mark.promise(35)
def test_a_compiled_model_is_the_plain_one(figures: Figures) -> None:
    """With code that is compiled for good, a minute for each form; the long count goes through more of them."""
    compiled = add("TorchCompileModel", "KSampler", "model", model="source", backend="inductor")
    runs: list[tuple[float | None, float]] = [(1.0, 0.4), (WITHOUT, 0.4), (1.0, 1.0), (0.0, 0.4), (1.0, 0.8)]
    with ComfyServer(comfyui_path()) as server:
        for strength, gamma in runs[: figures.count(2, 5)]:
            plain, fast = (latent(server, graph(strength, *more, gamma=gamma)) for more in ((), (compiled,)))
            apart = float((plain - fast).abs().max())
            figures.worst(35, apart, "largest difference of a compiled model")
            assert apart < 2e-3, (strength, gamma)


@pytest.mark.promise(31)
def test_a_tiled_decode_is_nearly_the_plain_one(client: ComfyClient) -> None:
    plain, tiled = api_workflow("flexip_basic"), api_workflow("flexip_basic")
    decode = node_of(tiled, "VAEDecode")
    tiled[decode] = {
        "class_type": "VAEDecodeTiled",
        "inputs": {
            **tiled[decode]["inputs"],
            "tile_size": 64,
            "overlap": 16,
            "temporal_size": 64,
            "temporal_overlap": 8,
        },
    }
    save = node_of(plain, "SaveImage")
    for prompt in (plain, tiled):
        prompt[node_of(prompt, "KSampler")]["inputs"]["steps"] = 2
    one, other = (
        Image.open(io.BytesIO(client.pictures(client.run(prompt), save)[0])).convert("RGB") for prompt in (plain, tiled)
    )
    assert one.size == other.size == (128, 128)
    assert sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3 < 6
    assert min(ImageStat.Stat(other).stddev) > 5


MODES: dict[str, tuple[str, ...]] = {
    "nothing cached": ("--cache-none",),
    "three results cached": ("--cache-lru", "3"),
    "fast": ("--fast",),
    "fp16 weights": ("--fp16-unet",),
    "bf16 weights": ("--bf16-unet",),
    "fp8 weights": ("--fp8_e4m3fn-unet",),
    "bf16 everywhere": ("--bf16-unet", "--bf16-vae", "--bf16-text-enc"),
}


@pytest.fixture(scope="module")
def as_ever(server: ComfyServer) -> torch.Tensor:
    """The latent at strength 1 of a server without more options."""
    return latent(server, graph(1.0))


@pytest.mark.promise(19)
@pytest.mark.parametrize("mode", MODES)
def test_server_option(as_ever: torch.Tensor, figures: Figures, mode: str) -> None:
    with ComfyServer(comfyui_path(), arguments=MODES[mode]) as server:
        one = acts_at_strength_one_alone(server)
        alike = torch.nn.functional.cosine_similarity(one.flatten().float(), as_ever.flatten().float(), dim=0)
        figures.worst(19, float(alike), f"lowest cosine to the server without options, {mode}", lowest=True)
        assert float(alike) > (0.97 if "fp8" in mode else 0.999)
        again = latent(server, graph(1.0, seed_of(2)))
        assert torch.equal(again, one)


def seed_of(seed: int) -> Change:
    def change(prompt: Prompt) -> None:
        prompt[node_of(prompt, "KSampler")]["inputs"]["seed"] = seed

    return change


@pytest.fixture(scope="module")
def fresh() -> Iterator[ComfyServer]:
    """A server for measurements, which no other test has used."""
    with ComfyServer(comfyui_path()) as running:
        yield running


def megabytes(server: ComfyServer) -> float:
    process = psutil.Process(server.pid)
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) / 1e6


EXAMPLES = ("sheep.webp", "cupcake.webp", "house.webp")


def changing(number: int) -> Prompt:
    """Another reference, prompt and γ for each number."""
    prompt = graph(1.0, seed_of(number), steps=1)
    prompt[node_of(prompt, "FlexIPLoadDemo")]["inputs"]["example"] = EXAMPLES[number % len(EXAMPLES)]
    prompt[node_of(prompt, "FlexIPApply")]["inputs"]["gamma"] = number * 37 % 100 / 100
    texts = [node for node in prompt.values() if node["class_type"] == "CLIPTextEncode"]
    texts[0]["inputs"]["text"] = f"a 3d render of a {('cat', 'cup', 'tree')[number % 3]} number {number}"
    return prompt


@pytest.mark.promise(32)
def test_many_runs_do_not_grow(fresh: ComfyServer, figures: Figures) -> None:
    # The allocator has its pages together after a hundred runs; most of them after sixty.
    runs, warm, client = figures.count(40, 200), figures.count(60, 100), ComfyClient(fresh.url)
    sizes = []
    for number in range(warm + runs):
        result = client.run(changing(number))
        assert result.status == "success", result.error
        sizes.append(megabytes(fresh))
    quarter = runs // 4
    first, last = (sum(part) / quarter for part in (sizes[warm : warm + quarter], sizes[-quarter:]))
    grown = (last - first) / (runs - quarter)
    figures.cases(32, runs, runs, "runs of a server")
    figures.worst(32, max(grown, 0), "growth a run of a server", "MB")
    assert grown <= 0.1 + 3 / runs, "megabytes a run; the allocator's pages come in lumps"


@pytest.mark.promise(33)
def test_interrupts_leave_the_next_result_as_ever(fresh: ComfyServer, figures: Figures) -> None:
    client, ever, times = ComfyClient(fresh.url), latent(fresh, graph(1.0)), figures.count(10, 50)
    for number in range(times):
        long = graph(1.0, seed_of(number), steps=1000)
        sampler, asked = node_of(long, "KSampler"), []

        def stop(message: dict, sampler: str = sampler, asked: list = asked) -> None:
            if message["type"] == "progress" and message["data"]["node"] == sampler and not asked:
                asked.append(True)
                urllib.request.urlopen(urllib.request.Request(f"{fresh.url}/interrupt", method="POST"), timeout=30)

        assert client.run(long, stop).status == "interrupted"
    assert torch.equal(latent(fresh, graph(1.0, strength_again)), ever)
    figures.cases(33, times, times, "interrupts of a server")


def strength_again(prompt: Prompt) -> None:
    """Not the earlier result out of the cache."""
    prompt[node_of(prompt, "FlexIPApply")]["inputs"]["end"] = 0.9999999


@pytest.mark.promise(38)
def test_free_gives_everything_back(fresh: ComfyServer, figures: Figures) -> None:
    """After `/free` all is loaded anew; were anything kept, each cycle would add the model's 24 MB.

    A host that is about to wait for work when the request comes does not hear it, and frees after the run that follows.
    """
    client, sizes, loader = ComfyClient(fresh.url), [], node_of(graph(), "FlexIPLoadDemo")
    for _ in range(figures.count(8, 40)):
        for _ in range(2):
            result = client.run(graph(1.0, steps=1))
            assert result.status == "success", result.error
            if loader in result.executed:
                break
        assert loader in result.executed or not sizes, "the loader did not run anew"
        body = json.dumps({"unload_models": True, "free_memory": True}).encode()
        request = urllib.request.Request(f"{fresh.url}/free", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=30)
        sizes.append(megabytes(fresh))
    grown = (sizes[-1] - sizes[2]) / (len(sizes) - 3)
    figures.worst(38, max(grown, 0), "growth a cycle of a run and /free", "MB")
    assert grown < 5
