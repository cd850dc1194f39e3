"""Attention maps on a ComfyUI that keeps no outputs (`--cache-none`): each run runs all nodes and records anew."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from PIL import Image, ImageChops

from flexip_model.comfyui import ComfyClient, ComfyServer
from flexip_model.comfyui.client import Prompt

from ..support.comfy_server import api_workflow, comfyui_path, node_of


@pytest.fixture(scope="module")
def uncached() -> Iterator[ComfyClient]:
    with ComfyServer(comfyui_path(), arguments=("--cache-none",)) as server:
        yield ComfyClient(server.url)


def graph(seed: int, **drawn: object) -> Prompt:
    prompt = api_workflow("flexip_attention_maps")
    prompt[node_of(prompt, "KSampler")]["inputs"] |= {"seed": seed, "steps": 3}
    prompt[node_of(prompt, "FlexIPAttentionMaps")]["inputs"] |= drawn
    return prompt


def sheet(client: ComfyClient, prompt: Prompt) -> Image.Image:
    result = client.run(prompt)
    assert result.status == "success", result.error
    maps = node_of(prompt, "FlexIPAttentionMaps")
    shown = next(n for n, c in prompt.items() if [maps, 0] in c["inputs"].values())
    return Image.open(io.BytesIO(client.pictures(result, shown)[0])).convert("RGB")


def same(first: Image.Image, second: Image.Image) -> bool:
    return ImageChops.difference(first, second).getbbox() is None


def test_maps_are_those_of_a_host_with_a_cache(uncached: ComfyClient, client: ComfyClient) -> None:
    first, layer, other = (
        sheet(uncached, graph(41)),
        sheet(uncached, graph(41, layers="mid")),
        sheet(uncached, graph(42)),
    )
    assert same(first, sheet(uncached, graph(41))) and not same(first, layer) and not same(first, other)
    for prompt, seen in ((graph(41), first), (graph(41, layers="mid"), layer), (graph(42), other)):
        assert same(sheet(client, prompt), seen)


def test_two_maps_of_one_run_and_two_runs_of_one_graph(uncached: ComfyClient) -> None:
    """Two drawings of one recording, and a second sampler behind the same recording: each finds its own run."""
    prompt = graph(41)
    sampler, maps, decode = (node_of(prompt, name) for name in ("KSampler", "FlexIPAttentionMaps", "VAEDecode"))
    preview = next(n for n, c in prompt.items() if [maps, 0] in c["inputs"].values())
    other = {**prompt[sampler], "inputs": {**prompt[sampler]["inputs"], "seed": 42}}
    prompt |= {
        "second": other,
        "decoded": {**prompt[decode], "inputs": {**prompt[decode]["inputs"], "samples": ["second", 0]}},
    }
    changes = {
        "layers": ({"layers": "mid"}, "a"),
        "seed": ({"latent": ["second", 0], "images": ["decoded", 0]}, "b"),
    }
    for name, (change, shown) in changes.items():
        prompt[name] = {**prompt[maps], "inputs": {**prompt[maps]["inputs"], **change}}
        prompt[shown] = {**prompt[preview], "inputs": {**prompt[preview]["inputs"], "images": [name, 0]}}
    result = uncached.run(prompt)
    assert result.status == "success", result.error
    found = [Image.open(io.BytesIO(uncached.pictures(result, node)[0])).convert("RGB") for node in (preview, "a", "b")]
    wanted = [sheet(uncached, graph(41)), sheet(uncached, graph(41, layers="mid")), sheet(uncached, graph(42))]
    assert all(same(one, other) for one, other in zip(found, wanted, strict=True))
