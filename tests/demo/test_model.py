"""The model that ships: small, whole, loadable by the libraries, and it does what its card says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from flexip_model.demo.evaluation.judge import to_bytes
from flexip_model.demo.evaluation.judges import border
from flexip_model.demo.evaluation.shipped import Shipped, noises
from flexip_model.demo.scenes.backgrounds import color_name
from flexip_model.demo.scenes.concepts import concept_of, heldout_instances
from flexip_model.demo.stages.export import folder_bytes
from flexip_model.demo.stages.vae import to_pixels
from flexip_model.files.adapter_file import read_info

from ..support.paths import ROOT, SHIPPED

FOLDER = SHIPPED


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    return Shipped(FOLDER)


def test_it_is_small_enough_for_a_repository() -> None:
    assert folder_bytes(FOLDER) < 40_000_000


def test_the_adapter_says_that_it_was_trained_and_on_what() -> None:
    info = read_info(FOLDER / "flexip_demo.safetensors")
    assert info.trained
    assert any("fluent-emoji" in line for line in info.training["data"])
    assert all(entry["hash"] for entry in info.encoders.values())


def test_its_encoders_are_those_that_the_adapter_was_trained_with() -> None:
    from flexip_model.encoders import load_clip, load_dino

    info = read_info(FOLDER / "flexip_demo.safetensors")
    assert load_clip(FOLDER / "encoders" / "clip_vision.safetensors").weights_hash == info.encoders["clip"]["hash"]
    assert load_dino(FOLDER / "encoders" / "dinov2.safetensors").weights_hash == info.encoders["retrieval"]["hash"]


def test_it_is_a_diffusers_pipeline_that_makes_a_picture() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        "a 3d render of a fox on a plain red background",
        num_inference_steps=4,
        height=128,
        width=128,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert picture.size == (128, 128)
    assert np.asarray(picture).std() > 5


def test_its_latents_have_the_scale_that_sd15_hosts_expect(shipped: Shipped) -> None:
    rng = np.random.default_rng(0)
    examples = [Image.open(p).convert("RGB").resize((128, 128)) for p in sorted((FOLDER / "examples").iterdir())]
    pixels = to_pixels(examples) * torch.from_numpy(rng.uniform(0.5, 1, (len(examples), 3, 1, 1))).float()
    with torch.no_grad():
        code = shipped.vae.encode(pixels).latent_dist.mean * 0.18215
    assert 0.5 < code.std() < 2


def test_the_examples_were_never_trained_on() -> None:
    names = [p.stem for p in (FOLDER / "examples").iterdir()]
    assert len(names) >= 6
    listed = json.loads((ROOT / "flexip_model/demo/scenes/heldout.json").read_text())
    known = {"sheep": "ewe"}
    assert all(("fluent", concept_of(known.get(n, n))) in heldout_instances() for n in names)
    assert all(any(known.get(n, n) in group for group in listed["fluent"].values()) for n in names)


def test_gamma_zero_follows_the_prompts_background_and_gamma_one_moves_towards_the_reference(shipped: Shipped) -> None:
    colors = ["red", "blue", "yellow", "green"]
    reference = Image.open(FOLDER / "examples" / "wolf.webp").convert("RGB").resize((128, 128))
    references = shipped.references(to_bytes([reference]))
    prompts = [f"a 3d render of a wolf on a plain {c} background" for c in colors]
    pictures = {g: shipped.draw(prompts, noises(4, 0), references, [0] * 4, [g] * 4).cpu() for g in (0.0, 1.0)}
    found = [color_name(b) for b in border(pictures[0.0])]
    assert sum(f == c for f, c in zip(found, colors, strict=True)) >= 3

    def distance(drawn: torch.Tensor) -> float:
        middle = (..., slice(32, 96), slice(32, 96))
        return float((drawn[middle].float() - to_bytes([reference])[middle].float()).abs().mean())

    assert distance(pictures[1.0]) < distance(pictures[0.0])


def test_gamma_one_keeps_each_held_out_example_so_that_its_look_tells_it_from_the_others(shipped: Shipped) -> None:
    paths = sorted((FOLDER / "examples").iterdir())
    shown = [Image.open(p).convert("RGB").resize((128, 128)) for p in paths]
    prompts = [f"a 3d render of a {p.stem} on a plain blue background" for p in paths]
    count = len(paths)
    drawn = shipped.draw(
        prompts, noises(count, 0), shipped.references(to_bytes(shown)), range(count), [1.0] * count
    ).cpu()
    wanted = [np.asarray(reference.resize((32, 32)), float) for reference in shown]
    right = 0
    for number, (picture, behind) in enumerate(zip(drawn, border(drawn), strict=True)):
        pixels = picture.permute(1, 2, 0).numpy().astype(float)
        empty = np.abs(pixels - behind).max(-1, keepdims=True) < 40
        look = np.where(empty, 255, pixels).astype(np.uint8)
        small = np.asarray(Image.fromarray(look).resize((32, 32)), float)
        distances = [np.abs(small - w).mean() for w in wanted]
        right += int(np.argmin(distances)) == number
    assert right == len(paths)
