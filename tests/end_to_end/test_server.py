"""The pack in a real ComfyUI server: what its clients see and rely on."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image, ImageChops, ImageStat

from flexip_model.comfyui import ComfyClient, ComfyServer
from flexip_model.common.errors import FlexIPError

from ..support.comfy_server import ALL_WORKFLOWS, WITH_SHIPPED_MODEL, WORKFLOWS, api_workflow, node_of
from ..support.paths import ROOT

NODES = (
    "FlexIPLoadEncoders",
    "FlexIPLoadAdapter",
    "FlexIPLoadDemo",
    "FlexIPExampleImage",
    "FlexIPEncodeReference",
    "FlexIPApply",
    "FlexIPGammaSweep",
    "FlexIPSweepGrid",
    "FlexIPRecordAttention",
    "FlexIPAttentionMaps",
    "FlexIPScore",
    "FlexIPFindGamma",
)
ENCODES = ("FlexIPLoadDemo", "CLIPTextEncode", "FlexIPEncodeReference")


def open_pictures(files: list[bytes]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(file)).convert("RGB") for file in files]


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference of two pictures, 0 to 255."""
    return sum(ImageStat.Stat(ImageChops.difference(a, b)).mean) / 3


def shown(prompt: dict, kind: str) -> str:
    """Id of the node that shows what the node of this kind makes."""
    source = node_of(prompt, kind)
    (found,) = [
        node
        for node, content in prompt.items()
        if content["class_type"] in ("SaveImage", "PreviewImage") and content["inputs"]["images"][0] == source
    ]
    return found


def test_nodes_register_with_tooltips_and_help(server: ComfyServer) -> None:
    registered = server.get("/object_info")
    assert {name for name in registered if name.startswith("FlexIP")} == set(NODES)
    for name in NODES:
        node = registered[name]
        assert node["category"] == "FlexIP"
        assert node["description"]
        for group in node["input"].values():
            for key, value in group.items():
                assert len(value[1].get("tooltip", "")) > 15, f"{name}.{key} has no tooltip"
        assert all(len(tip or "") > 10 for tip in node["output_tooltips"]), f"{name} has an output without a tooltip"
        assert (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8").startswith("# ")


def test_template_browser_gets_workflows_and_thumbnails(server: ComfyServer) -> None:
    templates = server.get("/workflow_templates")
    assert sorted(templates["ComfyUI-FlexIP"]) == sorted(ALL_WORKFLOWS)
    for name in ALL_WORKFLOWS:
        assert server.get(f"/api/workflow_templates/ComfyUI-FlexIP/{name}.json")["nodes"]
        with Image.open(WORKFLOWS / f"{name}.jpg") as thumbnail:
            assert thumbnail.format == "JPEG"


@pytest.mark.parametrize("name", ALL_WORKFLOWS)
def test_workflow_names_only_what_exists(server: ComfyServer, name: str) -> None:
    registered = server.get("/object_info")
    for content in api_workflow(name).values():
        node = registered[content["class_type"]]
        known = {key for group in node["input"].values() for key in group}
        assert set(content["inputs"]) <= known
        assert set(node["input"].get("required", {})) <= set(content["inputs"])


@pytest.mark.parametrize("name", WITH_SHIPPED_MODEL)
def test_workflow_makes_pictures(client: ComfyClient, name: str) -> None:
    prompt = api_workflow(name)
    result = client.run(prompt)
    assert result.status == "success", result.error
    source = "FlexIPFindGamma" if name == "flexip_find_gamma" else "VAEDecode"
    pictures = open_pictures(client.pictures(result, shown(prompt, source)))
    assert len(pictures) == (5 if name == "flexip_gamma_sweep" else 1)
    for picture in pictures:
        assert picture.size == (128, 128)
        assert min(ImageStat.Stat(picture).stddev) > 5, "a flat picture"
    sampler = node_of(prompt, "KSampler")
    steps = [value for node, value, _ in result.progress if node == sampler]
    assert steps == sorted(steps)
    # Newer hosts leave messages out where steps are fast; the last one always comes.
    assert len(set(steps)) >= 2 and steps[-1] == prompt[sampler]["inputs"]["steps"]


def test_sweep_differs_in_gamma_alone(client: ComfyClient) -> None:
    prompt = api_workflow("flexip_gamma_sweep")
    prompt[node_of(prompt, "FlexIPGammaSweep")]["inputs"]["gammas"] = "0, 0.5, 0.5, 1"
    prompt[node_of(prompt, "KSampler")]["inputs"]["steps"] = 6
    result = client.run(prompt)
    low, middle, again, high = open_pictures(client.pictures(result, shown(prompt, "VAEDecode")))
    assert difference(middle, again) < 1, "the same γ and noise twice"
    assert difference(low, high) > 4
    grid = open_pictures(client.pictures(result, shown(prompt, "FlexIPSweepGrid")))
    assert grid[0].width >= 5 * 128, "four pictures and the reference"


def test_maps_of_other_layers_are_drawn_without_sampling_again_and_a_new_seed_has_its_own(client: ComfyClient) -> None:
    prompt = api_workflow("flexip_attention_maps")
    sampler, maps = node_of(prompt, "KSampler"), node_of(prompt, "FlexIPAttentionMaps")

    def run(**changes: object) -> tuple[set[str], Image.Image]:
        for key, value in changes.items():
            prompt[sampler if key in ("seed", "steps") else maps]["inputs"][key] = value
        result = client.run(prompt)
        assert result.status == "success", result.error
        (sheet,) = open_pictures(client.pictures(result, shown(prompt, "FlexIPAttentionMaps")))
        return set(result.cached), sheet

    _, first = run(steps=3, seed=41)
    cached, fewer = run(layers="mid")
    assert sampler in cached and difference(first, fewer) > 0
    cached, other = run(layers="", seed=42)
    assert sampler not in cached and difference(first, other) > 0
    _, again = run(seed=41)
    assert difference(first, again) == 0
    prompt[maps]["inputs"]["last_step"] = 9
    refused = client.run(prompt)
    assert refused.status == "error" and "3 were seen" in str(refused.error)


@pytest.mark.promise(34)
def test_gamma_strength_and_seed_run_no_encoder_again(client: ComfyClient) -> None:
    prompt = api_workflow("flexip_gamma_sweep")
    sampler, sweep = node_of(prompt, "KSampler"), node_of(prompt, "FlexIPGammaSweep")
    prompt[sampler]["inputs"]["steps"] = 2
    assert client.run(prompt).status == "success"
    encoding = {node for node, content in prompt.items() if content["class_type"] in ENCODES}
    assert len(encoding) == 4
    for node, key, value in ((sweep, "gammas", "0.2, 0.7"), (sweep, "strength", 0.8), (sampler, "seed", 77)):
        prompt[node]["inputs"][key] = value
        result = client.run(prompt)
        assert result.status == "success", result.error
        assert encoding <= set(result.cached), f"{key} ran an encoder again"
        assert sampler in result.executed


@pytest.mark.promise(33)
def test_interrupt_stops_the_sampler_and_leaves_nothing_behind(client: ComfyClient) -> None:
    prompt = api_workflow("flexip_basic")
    sampler = node_of(prompt, "KSampler")
    prompt[sampler]["inputs"] |= {"steps": 4, "seed": 11}
    before = client.pictures(client.run(prompt), shown(prompt, "VAEDecode"))

    long = json.loads(json.dumps(prompt))
    long[sampler]["inputs"] |= {"steps": 1000, "seed": 12}
    started = threading.Event()

    def watch(message: dict) -> None:
        if message["type"] == "progress" and message["data"]["node"] == sampler:
            started.set()

    stopper = threading.Thread(target=lambda: started.wait(60) and client.interrupt())
    stopper.start()
    result = client.run(long, watch)
    stopper.join()
    assert result.status == "interrupted"
    assert result.progress[-1][1] < 1000

    long[sampler]["inputs"] = dict(prompt[sampler]["inputs"])
    long[shown(long, "VAEDecode")]["inputs"]["filename_prefix"] = "FlexIP/again"
    long[node_of(long, "FlexIPApply")]["inputs"]["strength"] = 1.0000001  # not the earlier result from the cache
    after = client.pictures(client.run(long), shown(long, "VAEDecode"))
    (first,), (second,) = open_pictures(before), open_pictures(after)
    assert difference(first, second) < 0.5


def test_a_search_for_gamma_is_ksamplers_picture_and_an_interrupt_leaves_nothing_behind(client: ComfyClient) -> None:
    """The picture that is found is the one that Apply FlexIP and KSampler draw at this γ, also after an interrupt."""
    prompt = api_workflow("flexip_find_gamma")
    find, score = node_of(prompt, "FlexIPFindGamma"), node_of(prompt, "FlexIPScore")
    for node in (shown(prompt, "FlexIPSweepGrid"), "FlexIPSweepGrid", "FlexIPGammaSweep", "KSampler", score):
        prompt.pop(node if node in prompt else node_of(prompt, node))
    decode = prompt.pop(node_of(prompt, "VAEDecode"))
    settings = prompt[find]["inputs"]
    settings |= {"steps": 3, "tolerance": 0.0, "most": 2}
    ends = " ".join(text for node, text in client.run(prompt).texts if node == find)
    low, high = (float(re.findall(rf"γ {gamma} +CLIP-I ([\d.]+)", ends)[-1]) for gamma in (0, 1))
    settings |= {"most": 4, "target": (low + high) / 2}
    result = client.run(prompt)
    assert result.status == "success", result.error
    before = client.pictures(result, shown(prompt, "FlexIPFindGamma"))
    steps = [value for node, value, _ in result.progress if node == find]
    assert steps == sorted(steps) and steps[-1] == 12, "one bar over four samplings of three steps"
    told = [text for node, text in result.texts if node == find]
    assert any("sampling 3 of at most 4" in text for text in told) and "given out" in told[-1]

    long = json.loads(json.dumps(prompt))
    long[find]["inputs"] |= {"steps": 200, "seed": 12}
    second = threading.Event()

    def watch(message: dict) -> None:
        if message["type"] == "progress" and message["data"]["node"] == find and message["data"]["value"] > 201:
            second.set()

    stopper = threading.Thread(target=lambda: second.wait(200) and client.interrupt())
    stopper.start()
    stopped = client.run(long, watch)
    stopper.join()
    assert second.is_set() and stopped.status == "interrupted"
    assert 200 < stopped.progress[-1][1] < 800

    again = json.loads(json.dumps(prompt))
    again[find]["inputs"]["strength"] = 1.0000001  # not the earlier result from the cache
    result = client.run(again)
    (first,), (later,) = (
        open_pictures(files) for files in (before, client.pictures(result, shown(again, "FlexIPFindGamma")))
    )
    assert difference(first, later) < 0.5

    plain = json.loads(json.dumps(prompt))
    names = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "positive", "negative", "latent_image")
    inputs = {"model": settings["model"], "adapter": settings["adapter"], "strength": 1.0, "start": 0.0, "end": 1.0}
    plain["apply"] = {"class_type": "FlexIPApply", "inputs": {**inputs, "gamma": [find, 0]}}
    sampled = {name: settings[name] for name in names} | {"model": ["apply", 0]}
    plain["sample"] = {"class_type": "KSampler", "inputs": sampled}
    plain["decode"] = {**decode, "inputs": {"samples": ["sample", 0], "vae": settings["vae"]}}
    plain["show"] = {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}}
    result = client.run(plain)
    assert result.status == "success", result.error
    (drawn,) = open_pictures(client.pictures(result, "show"))
    assert difference(first, drawn) == 0


def test_a_score_that_is_missing_stops_who_reads_it_with_the_reason(client: ComfyClient) -> None:
    """CLIP-I goes on as a list; CLIP-T, which the small model has not, tells why."""
    prompt = api_workflow("flexip_gamma_sweep")
    prompt[node_of(prompt, "KSampler")]["inputs"]["steps"] = 2
    pictures, demo = [node_of(prompt, "VAEDecode"), 0], node_of(prompt, "FlexIPLoadDemo")
    inputs = {"images": pictures, "encoders": [demo, 3], "reference": [demo, 5], "prompt": "a sheep"}
    prompt["score"] = {"class_type": "FlexIPScore", "inputs": inputs}
    prompt["likeness"] = {"class_type": "PreviewAny", "inputs": {"source": ["score", 0]}}
    result = client.run(prompt)
    assert result.status == "success", result.error
    values = [float(text) for text in result.outputs["likeness"]["text"]]
    assert len(values) == 5 and len(set(values)) > 1 and all(-1 <= value <= 1 for value in values)
    assert any(node == "score" and "CLIP-T is empty" in text for node, text in result.texts)
    prompt["text_fit"] = {"class_type": "PreviewAny", "inputs": {"source": ["score", 2]}}
    result = client.run(prompt)
    assert result.status == "error" and "holds no text tower" in result.error


def test_mistakes_come_back_as_sentences(client: ComfyClient) -> None:
    prompt = api_workflow("flexip_gamma_sweep")
    prompt[node_of(prompt, "FlexIPGammaSweep")]["inputs"]["gammas"] = "0:2:0.5"
    result = client.run(prompt)
    assert result.status == "error"
    assert "FlexIPGammaSweep" in result.error
    assert "from 0" in result.error
    with pytest.raises(FlexIPError, match="models/clip_vision|clip_vision"):
        client.run(api_workflow("flexip_gamma_sweep_sd15"))


def test_server_ends_with_its_parent(tmp_path) -> None:
    """kill -9 of the process that started a server takes the server with it."""
    child = (
        "import sys, subprocess; p = subprocess.Popen([sys.executable, sys.argv[1], sys.argv[2]],"
        " stdin=subprocess.PIPE); print(p.pid, flush=True); p.wait()"
    )
    main = tmp_path / "main.py"
    main.write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    launch = ROOT / "flexip_model" / "common" / "parent.py"
    parent = subprocess.Popen([sys.executable, "-c", child, str(launch), str(main)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    lines = sorted(parent.stdout.readline().strip() for _ in range(2))
    pid = int(next(line for line in lines if re.fullmatch(r"\d+", line)))
    parent.kill()
    parent.wait()

    import psutil

    end = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the server outlived its parent"
        time.sleep(0.05)


def test_an_adapter_from_the_trainer_is_listed_and_makes_a_sweep(server, client: ComfyClient, tmp_path) -> None:
    from flexip_model.train.trainer import Trainer

    from ..support.train_rig import config, pack

    trainer = Trainer(config(pack(tmp_path / "data"), tmp_path / "run", stages=[{"steps": 1}]))
    trainer.run()
    folder = server.base / "models" / "flexip"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(trainer.export(), folder / "mine.safetensors")
    prompt = api_workflow("flexip_gamma_sweep")
    demo = node_of(prompt, "FlexIPLoadDemo")
    prompt["mine"] = {"class_type": "FlexIPLoadAdapter", "inputs": {"adapter_name": "mine.safetensors"}}
    shipped = [demo, 4]
    for content in prompt.values():
        for key, value in content["inputs"].items():
            if value == shipped:
                content["inputs"][key] = ["mine", 0]
    result = client.run(prompt)
    assert result.status == "success", result.error
    assert len(client.pictures(result, shown(prompt, "VAEDecode"))) == 5
