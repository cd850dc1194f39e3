"""Load FlexIP Demo Model: the parts are diffusers' own, each load is its own, damage is named."""

import importlib
import json
import shutil

import pytest
import torch

from ..support.comfy_rig import prompt
from ..support.helpers import tiny_config
from ..support.paths import SHIPPED


def test_demo_parts_are_those_of_diffusers(demo, tiny_folder):
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    model, clip, vae, *_ = demo
    parts = (
        AutoencoderKL.from_pretrained(tiny_folder / "vae"),
        CLIPTextModel.from_pretrained(tiny_folder / "text_encoder"),
        CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer"),
        UNet2DConditionModel.from_pretrained(tiny_folder / "unet"),
    )
    pipe = StableDiffusionPipeline(
        *parts, scheduler=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    with torch.inference_mode():
        for text in ("a cat, on a mat", ""):
            assert (prompt(clip, text)[0][0] - pipe.encode_prompt(text, "cpu", 1, False)[0]).abs().max() < 1e-5
        image = torch.rand(1, 64, 64, 3)
        latent = vae.encode(image)
        assert (latent - pipe.vae.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mean).abs().max() < 1e-5
        decoded = (pipe.vae.decode(latent).sample.movedim(1, -1) + 1) / 2
        assert (vae.decode(latent) - decoded.clamp(0, 1)).abs().max() < 1e-5
        x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 500.0]), torch.randn(2, 77, tiny_config().text_width)
        unet = model.model.diffusion_model
        assert (unet(x, t, context=text) - pipe.unet(x, t, encoder_hidden_states=text).sample).abs().max() < 1e-5


def test_the_shipped_unet_has_widths_that_are_no_multiples_of_one(pack):
    from diffusers import UNet2DConditionModel

    model = importlib.import_module(f"{pack.__name__}.nodes.loading.diffusers_folder").load_unet(SHIPPED)
    theirs = UNet2DConditionModel.from_pretrained(SHIPPED / "unet")
    assert tuple(theirs.config.block_out_channels) == (48, 128, 128, 64)
    x, t, text = torch.randn(2, 4, 16, 16), torch.tensor([500.0, 500.0]), torch.randn(2, 77, 128)
    unet = model.model.diffusion_model.float()
    with torch.inference_mode():
        wanted = theirs.float()(x, t, encoder_hidden_states=text).sample
        assert (unet(x, t, context=text) - wanted).abs().max() < 1e-4 < wanted.abs().max()


def test_a_vae_of_other_widths_is_refused(pack, tiny_folder, tmp_path):
    error = importlib.import_module(f"{pack.__name__}.flexip_model.common.errors").FlexIPError
    shutil.copytree(tiny_folder / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    config["block_out_channels"][1] += 16
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=r"block_out_channels \[32, 80, 96, 96\]; expected multiples of 32"):
        importlib.import_module(f"{pack.__name__}.nodes.loading.diffusers_folder").load_vae(tmp_path)


def test_loading_the_demo_twice_shares_nothing(nodes, demo):
    again = nodes["FlexIPLoadDemo"].execute("gradient.png").args
    first, second = ({p.data_ptr() for p in part[0].model.parameters()} for part in (demo, again))
    assert not first & second
    assert demo[4].adapter is not again[4].adapter and demo[4].tag == again[4].tag


def test_a_damaged_demo_is_named(pack, nodes, tiny_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / "demo")
    monkeypatch.setattr(importlib.import_module(f"{pack.__name__}.nodes.demo"), "FOLDER", tmp_path / "demo")
    config = tmp_path / "demo" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 48', '"cross_attention_dim": 64'))
    with pytest.raises(ValueError, match=r"unet does not hold what its config.json says: 32 tensors differ"):
        nodes["FlexIPLoadDemo"].execute("gradient.png")
    (tmp_path / "demo" / "flexip_demo.safetensors").unlink()
    assert "missing from" in nodes["FlexIPLoadDemo"].validate_inputs("gradient.png")


@pytest.mark.parametrize(("said", "name"), [("epsilon", "EPS"), ("v_prediction", "V_PREDICTION"), ("sample", None)])
def test_the_model_predicts_what_its_scheduler_says(pack, tiny_folder, tmp_path, said, name):
    folders = importlib.import_module(f"{pack.__name__}.nodes.loading.diffusers_folder")
    error = importlib.import_module(f"{pack.__name__}.flexip_model.common.errors").FlexIPError
    folder = shutil.copytree(tiny_folder, tmp_path / "demo")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": said}))
    if name is None:
        with pytest.raises(error, match="prediction_type sample; expected epsilon or v_prediction"):
            folders.load_unet(folder)
    else:
        assert folders.load_unet(folder).model.model_type.name == name
