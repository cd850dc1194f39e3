"""`evaluate generate` with IP-Adapters: imported, and diffusers' own from the same files, each the other's check."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.evaluation.benchmarks.opening import open_benchmark
from flexip_model.evaluation.generate.base import load_base
from flexip_model.evaluation.pictures.forms import read_pictures
from flexip_model.files.ip_adapter import ip_adapter_order
from flexip_model.images.preprocess import CLIP_MEAN, CLIP_STD

from ..support.encoder_files import CLIP_SPEC
from ..support.encoder_files import save as save_encoder
from ..support.helpers import CHANNELS, tiny_config
from ..support.ip_adapter_files import plain_weights, plus_weights, save
from ..support.tiny_system import write_system
from .making import tiny_benchmark

KINDS = ("plain", "plus")
SIDE = 32
TOKENS = tiny_config().text_width
LAYERS = tuple(CHANNELS[site.level] for site in ip_adapter_order())


@pytest.fixture(scope="module")
def world(tmp_path_factory, clip_models):
    """A tiny base, both kinds of IP-Adapter for it, and one image encoder in both of its forms."""
    folder = tmp_path_factory.mktemp("ip-adapters")
    benchmark = tiny_benchmark(folder / "benchmark")
    for subject in benchmark:  # of the encoder's size, so that both preparations are the same numbers
        with Image.open(subject.reference) as picture:
            picture.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(subject.reference)
    write_system(folder / "system")
    tower, _ = clip_models
    tower.save_pretrained(folder / "image_encoder")
    spec = {**CLIP_SPEC, "mean": CLIP_MEAN, "std": CLIP_STD}
    save_encoder(folder / "clip.safetensors", tower.state_dict(), spec)
    torch.manual_seed(3)
    save(folder / "plain.safetensors", plain_weights(24, TOKENS, LAYERS))
    save(folder / "plus.safetensors", plus_weights(64, TOKENS, LAYERS, hidden=32))
    return folder


def command(world, out, *more, scales="0,0.4,1"):
    rest = ["--benchmark", world / "benchmark", "--base", world / "system", "--out", out, "--steps", 3, "--seeds", 1]
    return ["evaluate", "generate", *map(str, [*rest, "--device", "cpu", "--gammas", scales, *more])]


def imported(world, kind):
    return ["--adapter", world / f"{kind}.safetensors", "--clip", world / "clip.safetensors"]


def own(world, kind):
    return ["--ip-adapter", world / f"{kind}.safetensors", "--image-encoder", world / "image_encoder"]


def drawn(folder):
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path), int) for path in sorted(folder.rglob("*.png"))
    }


def apart(first, second):
    """The largest difference of two folders' pictures, in 8-bit levels."""
    assert first.keys() == second.keys()
    return max(int(np.abs(first[name] - second[name]).max()) for name in first)


@pytest.fixture(scope="module", params=KINDS)
def both(request, world):
    """An IP-Adapter's pictures, by this pack and by diffusers."""
    kind = request.param
    ours, theirs = world / f"{kind}-ours", world / f"{kind}-theirs"
    assert main(command(world, ours, *imported(world, kind))) == 0
    assert main(command(world, theirs, *own(world, kind))) == 0
    return kind, ours, theirs


def test_imported_and_diffusers_own_draw_the_same(world, both):
    _, ours, theirs = both
    for folder in (ours, theirs):
        found = read_pictures("IP-Adapter", folder, open_benchmark(world / "benchmark"))
        assert found.swept_knob() == "scale" and len(found.pictures) == 3 * 2 * 3 and found.problems == ()
    assert apart(drawn(ours), drawn(theirs)) <= 1
    pictures = drawn(theirs)
    assert np.abs(pictures["cup/0_0_scale0.4.png"] - pictures["cup/0_0_scale0.png"]).max() > 8
    assert np.abs(pictures["cup/0_0_scale1.png"] - pictures["dog/0_0_scale1.png"]).max() > 8


def test_diffusers_pipeline_draws_the_same(world, both):
    """The whole pipeline, called as its users call it, on one picture."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPVisionModelWithProjection

    kind, ours, theirs = both
    base = load_base(world / "system")
    pipeline = StableDiffusionPipeline(
        base.vae,
        base.text_encoder,
        base.tokenizer,
        base.unet,
        DDIMScheduler.from_config(base.scheduler.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        None,
        None,
        CLIPVisionModelWithProjection.from_pretrained(world / "image_encoder"),
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_ip_adapter(str(world), subfolder="", weight_name=f"{kind}.safetensors", image_encoder_folder=None)
    pipeline.set_ip_adapter_scale(0.4)
    side = base.size // base.scale
    latents = torch.randn(4, side, side, generator=torch.Generator().manual_seed(0))[None]
    with Image.open(world / "benchmark" / "cup.png") as reference:
        (picture,) = pipeline(
            "a cup toy at night",
            ip_adapter_image=reference.convert("RGB"),
            latents=latents,
            num_inference_steps=3,
            guidance_scale=7.5,
        ).images
    for folder in (ours, theirs):
        own_one = drawn(folder)["cup/1_0_scale0.4.png"]
        assert np.abs(own_one - np.asarray(picture, int)).max() <= 2


def test_scale_0_is_the_base_alone(world, both):
    kind, ours, theirs = both
    base = world / f"{kind}-base"
    assert main(command(world, base)) == 0
    alone = drawn(base)
    for folder in (ours, theirs):
        zero = {name.replace("_scale0.png", ".png"): p for name, p in drawn(folder).items() if "_scale0.png" in name}
        assert apart(zero, alone) <= 1  # batches of other sizes add up in another order


def test_a_run_of_diffusers_own_goes_on_and_says_who_drew(world, both, tmp_path, capsys):
    kind, ours, theirs = both
    entry = json.loads((theirs / "dog" / "0_0_scale0.4.json").read_text())
    mine = json.loads((ours / "dog" / "0_0_scale0.4.json").read_text())
    assert entry["drawn_by"] == "diffusers' own IP-Adapter" and "drawn_by" not in mine
    assert entry["adapter"] == mine["adapter"] and entry["scale"] == 0.4 and len(entry["encoders"]["clip"]) == 16
    out = tmp_path / "cut"
    shutil.copytree(theirs, out)
    for name in ("dog/0_0_scale1.json", "hat/1_0_scale0.png"):
        (out / name).unlink()
    assert main(command(world, out, *own(world, kind))) == 0
    assert {p.name: p.read_bytes() for p in out.rglob("*.*")} == {p.name: p.read_bytes() for p in theirs.rglob("*.*")}
    assert main(command(world, out, *imported(world, kind))) == 2
    assert "was drawn with other settings" in capsys.readouterr().err


def test_what_is_missing_or_wrong_is_one_sentence(world, tmp_path, capsys):
    def told(*more):
        assert main(command(world, tmp_path / "out", *more)) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert not (tmp_path / "out").exists()
        return line

    encoder, plain = ["--image-encoder", world / "image_encoder"], ["--ip-adapter", world / "plain.safetensors"]
    assert "there is no file nowhere.safetensors" in told("--ip-adapter", "nowhere.safetensors", *encoder)
    assert "name --image-encoder FOLDER" in told(*plain) and "huggingface.co/h94/IP-Adapter" in told(*plain)
    assert "there is no folder nowhere; " in told(*plain, "--image-encoder", "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no .safetensors file" in told(*plain, "--image-encoder", empty)
    assert "are both named" in told(*plain, *encoder, "--adapter", world / "plus.safetensors")
    assert "belongs to --ip-adapter" in told(*encoder)
    assert "takes the center alone" in told(*plain, *encoder, "--crop", "pad")
    assert "leave --strengths out" in told(*plain, *encoder, "--strengths", "1,2")
    flexip = world / "system" / "flexip_demo.safetensors"
    assert "can be converted" in told("--ip-adapter", flexip, *encoder)
    wide = save(tmp_path / "wide.safetensors", plain_weights(40, TOKENS, LAYERS))
    assert "embeddings of the image encoder are 24 wide and the IP-Adapter reads 40" in told(
        "--ip-adapter", wide, *encoder
    )
    other = save(tmp_path / "other.safetensors", plain_weights(24, 16, LAYERS))
    assert "the UNet's widths are" in told("--ip-adapter", other, *encoder)
    assert "name --clip FILE (for SD1.5: OpenCLIP ViT-H/14" in told("--adapter", world / "plain.safetensors")
