"""A base and a VAE in single files: the same run as from folders, known by content, looked at before it begins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexip_model.common.errors import FlexIPError
from flexip_model.data.cache.encode import CacheTask, make_caches
from flexip_model.files.adapter_file import load_adapter_file
from flexip_model.train.trainer import Trainer

from ..support.tiny_system import write_configs, write_single_file, write_system
from ..support.train_rig import config, pack, tensors, train


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, comfy) -> Path:
    """A tiny system, the same as a single file, and its configs without weights."""
    folder = tmp_path_factory.mktemp("single")
    write_system(folder / "system")
    write_configs(folder / "system", folder / "configs")
    write_single_file(folder / "system", folder / "tiny.safetensors")
    return folder


def beside(world: Path, **changes: object) -> dict[str, object]:
    encoders = world / "system" / "encoders"
    paths = {"base": world / "system", "clip": encoders / "clip_vision.safetensors"}
    paths["dino"] = encoders / "dinov2.safetensors"
    return {key: str(value) for key, value in paths.items()} | changes


def in_file(world: Path, **changes: object) -> dict[str, object]:
    return beside(world, base=str(world / "tiny.safetensors"), base_configs=str(world / "configs"), **changes)


def refused(data: Path, output: Path, **changes: object) -> str:
    with pytest.raises(FlexIPError) as found:
        Trainer(config(data, output, **changes))
    return str(found.value)


def test_a_run_beside_a_single_file_has_the_bits_of_one_beside_its_folder(data, world, tmp_path) -> None:
    """And goes on beside either: a base is known by its content, not by its name."""
    two = [{"steps": 2}]
    train(data, tmp_path / "folder", stages=two, **beside(world))
    train(data, tmp_path / "file", stages=[{"steps": 1}], **in_file(world))
    train(data, tmp_path / "file", stages=two, **beside(world))
    for name, value in tensors(tmp_path / "folder", 2).items():
        assert torch.equal(value, tensors(tmp_path / "file", 2)[name]), name


def test_other_configs_of_a_single_file_are_another_base(data, world, tmp_path) -> None:
    other = write_configs(world / "system", tmp_path / "other")
    scheduler = other / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "beta_end": 0.03}))
    train(data, tmp_path / "run", stages=[{"steps": 1}], **in_file(world))
    with pytest.raises(
        FlexIPError, match=r"started with base_configs .*configs, whose noise schedule.*not.* of .*other"
    ):
        train(data, tmp_path / "run", stages=[{"steps": 2}], **in_file(world) | {"base_configs": str(other)})


@pytest.fixture(scope="module")
def vae_file(world: Path) -> Path:
    """Another VAE, in Stability's layout of keys, as people share them: without the model around it."""
    held = load_file(world / "tiny.safetensors")
    prefix = "first_stage_model."
    own = {k.removeprefix(prefix): v * 1.01 for k, v in held.items() if k.startswith(prefix)}
    save_file(own, world / "vae.safetensors")
    return world / "vae.safetensors"


@pytest.mark.parametrize("single", [False, True])
def test_a_vae_takes_the_place_of_the_bases(data, world, vae_file, tmp_path, single) -> None:
    named = (in_file if single else beside)(world)
    own, trainer = (
        Trainer(config(data, tmp_path / "own", **named)),
        Trainer(config(data, tmp_path / "run", **named, vae=str(vae_file))),
    )
    key = "encoder.conv_in.weight"
    held, wanted = (t.frozen.vae.state_dict()[key] for t in (trainer, own))
    assert torch.equal(held, wanted * 1.01)
    assert trainer.frozen.latents_manifest != own.frozen.latents_manifest
    trainer.frozen.vae.save_pretrained(tmp_path / "vae")
    again = Trainer(config(data, tmp_path / "run", **named, vae=str(tmp_path / "vae")))
    assert again.beside == trainer.beside
    assert own.beside["vae"] != again.beside["vae"]


def test_a_run_goes_on_with_its_own_vae_alone_and_names_it(data, world, vae_file, tmp_path) -> None:
    stages = [{"steps": 1}]
    path = train(data, tmp_path / "run", stages=stages, vae=str(vae_file), **beside(world)).export()
    assert load_adapter_file(path)[0].training["vae"] == "vae.safetensors"
    assert "with the VAE `vae.safetensors`" in path.with_suffix(".md").read_text()
    with pytest.raises(
        FlexIPError, match=r"started with vae .*vae.safetensors, whose weights are not those of .*system"
    ):
        train(data, tmp_path / "run", stages=[{"steps": 2}], **beside(world))


def test_a_cache_of_a_single_files_latents_is_read(world, vae_file, tmp_path) -> None:
    data = pack(tmp_path / "data", images=2, variants=2)
    make_caches(CacheTask(data, str(vae_file), vae_configs=str(world / "configs"), size=64, device="cpu"))
    made = replace(config(data, tmp_path, **in_file(world)), vae=str(vae_file))
    from flexip_model.train.samples.sample_set import open_samples

    samples = open_samples(made, Trainer(made).frozen, 0, 1)
    assert samples[samples.sampler.tickets(0, 0)[0]].latents is not None


def test_what_lacks_for_single_files_is_told_before_the_first_step(data, world, tmp_path) -> None:
    for changes, words in (
        (
            {"base_configs": None},
            "is a single file, which has no configs and no tokenizer; name a folder .*base_configs",
        ),
        ({"base": str(world / "system")}, "is no file, and configs .* leave them out"),
        ({"vae": str(tmp_path / "none.safetensors")}, "there is no VAE in .*none.safetensors"),
        ({"vae": str(world / "system" / "encoders" / "dinov2.safetensors")}, "the VAE in .*dinov2.*cannot be loaded"),
        ({"base": str(world / "system" / "encoders" / "dinov2.safetensors")}, "the base .*dinov2.* cannot be loaded"),
    ):
        with pytest.raises(FlexIPError, match=words):
            Trainer(config(data, tmp_path / "run", **in_file(world) | changes))
    pickled = tmp_path / "old.ckpt"
    pickled.write_bytes(b"PK")
    assert "is no .safetensors file" in refused(data, tmp_path / "run", **in_file(world) | {"base": str(pickled)})


def test_a_vae_of_other_latents_is_refused(data, world, tmp_path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(latent_channels=8, norm_num_groups=8, block_out_channels=(32,)).save_pretrained(tmp_path / "vae")
    said = refused(data, tmp_path / "run", **beside(world, vae=str(tmp_path / "vae")))
    assert "has 8 latent channels" in said and "and the base's has 4" in said
