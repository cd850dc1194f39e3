"""The nodes as their user meets them: frozen names, messages, what each gives."""

import dataclasses
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flexip_model.checkpoint import save_adapter
from flexip_model.preprocess import CROPS

from .helpers import tiny_adapter, tiny_config

ROOT = Path(__file__).resolve().parent.parent

# Frozen once released: only optional inputs may be added.
FROZEN = {
    "FlexIPLoadEncoders": (["clip_vision", "dinov2"], ["FLEXIP_ENCODERS"]),
    "FlexIPLoadAdapter": (["adapter_name"], ["FLEXIP_ADAPTER"]),
    "FlexIPLoadDemo": (["example"], ["MODEL", "CLIP", "VAE", "FLEXIP_ENCODERS", "FLEXIP_ADAPTER", "IMAGE"]),
    "FlexIPExampleImage": (["example"], ["IMAGE"]),
    "FlexIPEncodeReference": (
        ["encoders", "adapter", "image", "positive", "negative", "crop", "mask"],
        ["CONDITIONING", "CONDITIONING", "FLEXIP_EMBEDS"],
    ),
    "FlexIPApply": (
        ["model", "adapter", "gamma", "strength", "start", "end", "gamma_map", "attention_mask", "curve", "layers"],
        ["MODEL"],
    ),
    "FlexIPGammaSweep": (
        ["model", "adapter", "latent", "gammas", "strength", "start", "end"],
        ["MODEL", "LATENT", "FLEXIP_GAMMAS"],
    ),
    "FlexIPSweepGrid": (["images", "gammas", "reference", "title"], ["IMAGE"]),
}


@pytest.fixture
def nodes(pack):
    return pack.NODE_CLASS_MAPPINGS


@pytest.fixture
def demo(pack, nodes, tiny_folder, monkeypatch):
    """The parts that Load FlexIP Demo Model gives, from the tiny system."""
    monkeypatch.setattr(importlib.import_module(f"{pack.__name__}.nodes.demo"), "FOLDER", tiny_folder)
    with torch.inference_mode():
        return nodes["FlexIPLoadDemo"].execute("gradient.png").args


def prompt(clip, text):
    return importlib.import_module("nodes").CLIPTextEncode().encode(clip, text)[0]


def test_ids_and_inputs_are_frozen(nodes):
    assert set(nodes) == set(FROZEN)
    for name, (inputs, outputs) in FROZEN.items():
        schema = nodes[name].GET_SCHEMA()
        assert schema.node_id == name and schema.category == "FlexIP"
        assert [given.id for given in schema.inputs] == inputs
        assert [given.io_type for given in schema.outputs] == outputs


def test_every_input_and_output_is_explained_and_every_node_has_its_page(pack, nodes):
    for name, node in nodes.items():
        schema = node.GET_SCHEMA()
        assert schema.description and pack.NODE_DISPLAY_NAME_MAPPINGS[name] == schema.display_name
        for given in [*schema.inputs, *schema.outputs]:
            assert given.tooltip, f"{name}.{given.id} has no tooltip"
        page = (ROOT / pack.WEB_DIRECTORY / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n")
        for given in schema.inputs:
            assert given.id in page, f"the page of {name} does not name {given.id}"


def test_importing_the_pack_loads_no_encoder_library_and_touches_neither_disk_nor_network(comfy):
    script = f"""
import importlib.util, os, sys
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, {os.environ["COMFYUI_PATH"]!r})
import comfy.options; comfy.options.enable_args_parsing()
import nodes
before = set(sys.modules)
touched = []
CHANGES = {{"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.mkdir", "os.rename",
           "os.remove", "os.rmdir", "shutil.rmtree", "shutil.move"}}
def told(event, args):
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if writes or event in CHANGES:
        touched.append((event, *map(str, args)))
sys.dont_write_bytecode = True
sys.addaudithook(told)
spec = importlib.util.spec_from_file_location("a_pack", {str(ROOT / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
sys.modules["a_pack"] = module
spec.loader.exec_module(module)
heavy = {{"open_clip", "diffusers", "timm", "torchvision", "accelerate"}} & (set(sys.modules) - before)
assert not heavy, heavy
assert not touched, touched
assert len(module.NODE_CLASS_MAPPINGS) == {len(FROZEN)}
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent)


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
    folders = importlib.import_module(f"{pack.__name__}.nodes.diffusers_folder")
    error = importlib.import_module(f"{pack.__name__}.flexip_model.errors").FlexIPError
    folder = shutil.copytree(tiny_folder, tmp_path / "demo")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": said}))
    if name is None:
        with pytest.raises(error, match="prediction_type sample; expected epsilon or v_prediction"):
            folders.load_unet(folder)
    else:
        assert folders.load_unet(folder).model.model_type.name == name


def test_a_whole_sweep_through_the_nodes(nodes, demo):
    comfy_nodes = importlib.import_module("nodes")
    model, clip, vae, encoders, adapter, example = demo
    with torch.inference_mode():
        found = nodes["FlexIPEncodeReference"].execute(
            encoders, adapter, example, prompt(clip, "a cat"), prompt(clip, ""), "center"
        )
        positive, negative, embeds = found.args
        assert found.ui.as_dict()["images"][0]["type"] == "temp"
        assert embeds.preservation.shape == (1, 17, tiny_config().token_width)
        latent = {"samples": torch.zeros(1, 4, 8, 8), "noise_mask": torch.ones(1, 1, 64, 64)}
        swept, latents, gammas = nodes["FlexIPGammaSweep"].execute(model, adapter, latent, "0:1:0.5").args
        assert gammas == [0, 0.5, 1] and latents["batch_index"] == [0, 0, 0] and latents["samples"].shape[0] == 3
        assert "batch_index" not in latent and latents["noise_mask"] is latent["noise_mask"]
        (out,) = comfy_nodes.common_ksampler(swept, 3, 2, 5.0, "ddim", "normal", positive, negative, latents)
        for i, gamma in enumerate(gammas):
            single = nodes["FlexIPApply"].execute(model, adapter, gamma, 1.0, 0.0, 1.0).args[0]
            (alone,) = comfy_nodes.common_ksampler(
                single, 3, 2, 5.0, "ddim", "normal", positive, negative, {"samples": torch.zeros(1, 4, 8, 8)}
            )
            scale = out["samples"].abs().max()
            assert (out["samples"][i : i + 1] - alone["samples"]).abs().max() <= 1e-4 * scale
        (grid,) = nodes["FlexIPSweepGrid"].execute(vae.decode(out["samples"]), gammas, example, "a title").args
    assert grid.shape[0] == 1 and grid.shape[2] > 4 * 64 and grid.min() >= 0 and grid.max() <= 1


def test_the_sweep_refuses_a_batch_and_a_wrong_list(nodes, demo):
    model, _, _, _, adapter, _ = demo
    sweep = nodes["FlexIPGammaSweep"]
    with pytest.raises(ValueError, match="set batch_size to 1"):
        sweep.execute(model, adapter, {"samples": torch.zeros(2, 4, 8, 8)}, "0:1:0.5")
    with pytest.raises(ValueError, match="expected numbers from 0"):
        sweep.execute(model, adapter, {"samples": torch.zeros(1, 4, 8, 8)}, "0, 1.5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.2}, "expected numbers from 0"),
        ({"start": 0.8, "end": 0.2}, "start is 0.8 and end 0.2"),
        ({"gamma_map": torch.full((1, 8, 8), math.nan)}, "the γ map has shape"),
        ({"attention_mask": torch.full((1, 8, 8), 255.0)}, "the attention mask has shape"),
        ({"curve": "0:1, 0.5"}, "the γ curve is"),
        ({"curve": "0.5:1, 0.5:0"}, "must rise"),
        ({"curve": "0:2"}, "γ in the curve is"),
        ({"layers": "head=1"}, 'there is no block "head"'),
        ({"layers": "down=x"}, 'the weight of down is "x"'),
    ],
)
def test_apply_says_what_is_wrong(nodes, demo, settings, message):
    given = {"gamma": 0.5, "strength": 1.0, "start": 0.0, "end": 1.0, **settings}
    with pytest.raises(ValueError, match=message):
        nodes["FlexIPApply"].execute(demo[0], demo[4], **given)


def test_grid_lays_out_rows_labels_and_reference(pack):
    draw = importlib.import_module(f"{pack.__name__}.nodes.grid").draw_grid
    red, blue = torch.zeros(1, 40, 60, 3), torch.zeros(1, 40, 60, 3)
    red[..., 0], blue[..., 2] = 1, 1
    grid = draw(torch.cat([red, blue, blue, red]), [0.0, 1.0])
    height, width = grid.shape[1:3]
    is_red = ((grid[0] - red[0, 0, 0]).abs().amax(-1) < 1e-3).float()
    left, right = is_red[:, : width // 2], is_red[:, width // 2 :]
    assert left.sum() == right.sum() == 40 * 60
    assert left.any(1).nonzero().max() < right.any(1).nonzero().min()
    assert (grid[0, : height // 5].min() < 0.5) and grid[0, 0].min() == 1  # a label in the margin on top
    with_reference = draw(torch.cat([red, blue]), [0.0, 1.0], reference=torch.ones(1, 10, 10, 3) * 0.5)
    assert with_reference.shape[2] > width
    with pytest.raises(ValueError, match="there are 3 pictures for 2 γ values"):
        draw(torch.cat([red, red, blue]), [0.0, 1.0])


def test_entries_are_kept_and_carry_their_own_s(rig):
    """Areas, ranges and other keys stay, the input is not changed, S is made from each entry's own text."""
    text, longer = rig.text(77, 1), rig.text(154, 2)
    mine = {"area": (8, 8, 0, 0), "start_percent": 0.2, "model_conds": {"other": "kept"}}
    positive = [[text, mine], [longer, {"pooled_output": None}], [None, {"strength": 0.5}]]
    out, _ = rig.encode(positive, positive)
    assert set(mine["model_conds"]) == {"other"} and len(positive[0]) == 2
    assert [entry[0] is given[0] for entry, given in zip(out, positive, strict=True)] == [True] * 3
    assert out[0][1]["area"] == (8, 8, 0, 0) and out[0][1]["model_conds"]["other"] == "kept"
    adapter, features = rig.adapter.adapter, rig.features()
    for entry, source in ((out[0], text), (out[1], longer)):
        wanted = adapter.personalization(source, features.cls)
        assert torch.equal(entry[1]["model_conds"][rig.adapter.s_key].cond, wanted)
        assert torch.equal(entry[1]["model_conds"][rig.adapter.p_key].cond, adapter.preservation(features))
    assert rig.adapter.s_key not in out[2][1]["model_conds"]
    with pytest.raises(ValueError, match="the prompt's text is 2048 wide"):
        rig.encode([[torch.randn(1, 77, 2048), {}]], positive)


def test_the_negative_prompt_carries_the_null_subject(rig):
    positive, negative = rig.prompts()
    _, out = rig.encode(positive, negative)
    adapter = rig.adapter.adapter
    null = adapter.null_features(1, rig.features().patches)
    conds = out[0][1]["model_conds"]
    assert torch.equal(conds[rig.adapter.p_key].cond, adapter.preservation(null))
    assert torch.equal(conds[rig.adapter.s_key].cond, adapter.personalization(negative[0][0], null.cls))


def test_several_references_are_used_together(rig):
    """The same picture three times is that picture; different ones are neither alone."""
    one, other = rig.features(1, seed=1), rig.features(1, seed=8)
    triple = type(one)(one.cls.repeat(3, 1), one.patches.repeat(3, 1, 1))
    both = type(one)(torch.cat([one.cls, other.cls]), torch.cat([one.patches, other.patches]))
    model, prompts = rig.apply(0.5), rig.prompts()

    def noise(features):
        return rig.predict(model, *rig.encode(*prompts, features))[0]

    assert (noise(triple) - noise(one)).abs().max() <= 1e-5
    assert (noise(both) - noise(one)).abs().max() > 1e-3 < (noise(both) - noise(other)).abs().max()
    swapped = type(one)(both.cls.flip(0), both.patches.flip(0))
    assert (noise(both) - noise(swapped)).abs().max() <= 1e-5


def test_a_batch_of_references_equals_each_by_itself(pack, demo):
    encode = importlib.import_module(f"{pack.__name__}.nodes.encode").encode_features
    images, masks = torch.rand(3, 40, 56, 3), torch.zeros(3, 40, 56)
    masks[0] = 1
    masks[1:, 10:30, 20:40] = 1
    for crop in CROPS:
        together, _ = encode(demo[3], images, masks, crop, "flexip")
        for i in range(3):
            alone, _ = encode(demo[3], images[i : i + 1], masks[i : i + 1], crop, "flexip")
            assert (together.cls[i] - alone.cls[0]).abs().max() <= 1e-5
            assert (together.patches[i] - alone.patches[0]).abs().max() <= 1e-5


def test_encoders_that_do_not_fit_are_refused(nodes, demo, rig):
    _, clip, _, encoders, _, example = demo
    wide = tiny_adapter(clip_width=64)
    other = rig.with_tensors(wide.state_dict(), wide.config).adapter
    with pytest.raises(ValueError, match="load the encoders that the adapter was trained with"):
        nodes["FlexIPEncodeReference"].execute(encoders, other, example, prompt(clip, "x"), prompt(clip, ""), "center")


def test_other_weights_of_the_right_sizes_are_told(nodes, demo, caplog):
    _, clip, _, encoders, adapter, example = demo

    def encode(info):
        other = dataclasses.replace(adapter, info=info)
        caplog.clear()
        nodes["FlexIPEncodeReference"].execute(encoders, other, example, prompt(clip, "x"), prompt(clip, ""), "center")
        return [record.message for record in caplog.records if "weights of the encoder" in record.message]

    assert encode(adapter.info) == []
    told = encode(dataclasses.replace(adapter.info, encoders={
        "clip": {"name": "another CLIP", "hash": "0123456789abcdef"}, "retrieval": {"name": "unknown", "hash": ""}}))
    assert len(told) == 1 and "another CLIP (0123456789abcdef)" in told[0]


def test_a_missing_file_is_named_with_its_source_and_folder(nodes, comfy_base):
    text = nodes["FlexIPLoadEncoders"].validate_inputs("ViT-H.safetensors", "x.safetensors")
    assert '"ViT-H.safetensors" is not there' in text and "laion/CLIP-ViT-H-14-laion2B-s32B-b79K" in text
    assert str(comfy_base / "models" / "clip_vision") in text
    text = nodes["FlexIPLoadAdapter"].validate_inputs("(no file found)")
    assert "no file is chosen" in text and str(comfy_base / "models" / "flexip") in text and "convert" in text
    options = nodes["FlexIPLoadAdapter"].INPUT_TYPES()["required"]["adapter_name"][1]["options"]
    assert options == ["(no file found)"]


def test_files_are_listed_anew_and_loaded(nodes, comfy_base, tiny_folder):
    folders = {name: comfy_base / "models" / name for name in ("flexip", "clip_vision", "dinov2")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    adapter = tiny_adapter()
    for name, trained in (("good", True), ("empty", False), ("empty_untrained", False)):
        save_adapter(
            folders["flexip"] / f"{name}.safetensors", adapter.config, adapter.state_dict(),
            training={"trained": trained},
        )
    shutil.copy(tiny_folder / "encoders" / "clip_vision.safetensors", folders["clip_vision"] / "vit-h.safetensors")
    shutil.copy(tiny_folder / "encoders" / "dinov2.safetensors", folders["dinov2"] / "dino.safetensors")
    (folders["dinov2"] / "pickle.bin").write_bytes(b"x")
    try:
        load = nodes["FlexIPLoadAdapter"]
        options = load.INPUT_TYPES()["required"]["adapter_name"][1]["options"]
        assert options == ["empty.safetensors", "empty_untrained.safetensors", "good.safetensors"]
        assert load.validate_inputs("good.safetensors") is True
        assert load.execute("good.safetensors").args[0].info.trained
        assert load.execute("empty_untrained.safetensors").args[0].name == "empty_untrained.safetensors"
        with pytest.raises(ValueError, match="empty.safetensors was never trained"):
            load.execute("empty.safetensors")
        before = load.fingerprint_inputs("good.safetensors")
        os.utime(folders["flexip"] / "good.safetensors", (1, 1))
        assert load.fingerprint_inputs("good.safetensors") != before
        encoders = nodes["FlexIPLoadEncoders"]
        required = encoders.INPUT_TYPES()["required"]
        *options, no_dino = required["dinov2"][1]["options"]
        assert options == ["dino.safetensors", "vit-h.safetensors"]
        assert required["dinov2"][1]["default"] == "dino.safetensors"
        found = encoders.execute("vit-h.safetensors", "dino.safetensors").args[0]
        assert found.encoders.clip.width == tiny_config().clip_width
        assert encoders.validate_inputs("vit-h.safetensors", no_dino) is True
        assert encoders.fingerprint_inputs("vit-h.safetensors", no_dino)
        assert encoders.execute("vit-h.safetensors", no_dino).args[0].encoders.dino is None
        text = encoders.validate_inputs("vit-h.safetensors", "gone.safetensors")
        assert "pickle.bin" in text and "facebook/dinov2-large" in text
        assert f"Put it into {folders['dinov2']} and" in text
    finally:
        for file in (file for folder in folders.values() for file in folder.iterdir()):
            file.unlink()


def test_paths_stay_inside_their_folders(nodes, comfy_base, tmp_path):
    (comfy_base / "secret.safetensors").write_bytes(b"x")
    for name in ("../../secret.safetensors", str(comfy_base / "secret.safetensors"), "..\\..\\secret.safetensors"):
        assert isinstance(nodes["FlexIPLoadAdapter"].validate_inputs(name), str)
        assert isinstance(nodes["FlexIPLoadEncoders"].validate_inputs(name, name), str)
        assert isinstance(nodes["FlexIPLoadDemo"].validate_inputs(name), str)


def test_folders_of_others_are_kept(pack):
    folders = importlib.import_module(f"{pack.__name__}.nodes.folders")
    paths = importlib.import_module("folder_paths")
    paths.add_model_folder_path("dinov2", "/somewhere/else")
    folders.register_folders()
    assert "/somewhere/else" in paths.get_folder_paths("dinov2")
    assert str(Path(paths.models_dir) / "dinov2") in paths.get_folder_paths("dinov2")
    paths.folder_names_and_paths["dinov2"][0].remove("/somewhere/else")


def test_a_new_prompt_encodes_the_picture_no_second_time(pack, nodes, demo, monkeypatch):
    encoder, passes = importlib.import_module(f"{pack.__name__}.flexip_model.encoders").ClipEncoder, []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda self, *a, **k: passes.append(1) or forward(self, *a, **k))
    _, clip, _, encoders, adapter, example = demo

    def run(text, image):
        return nodes["FlexIPEncodeReference"].execute(
            encoders, adapter, image, prompt(clip, text), prompt(clip, ""), "pad"
        ).args[2]

    first = run("a cat", example)
    assert torch.equal(run("a dog", example).preservation, first.preservation) and len(passes) == 1
    other = run("a dog", 1 - example)
    assert not torch.equal(other.preservation, first.preservation) and len(passes) == 2
    for index in range(20):
        run("a cat", torch.full((1, 30, 30, 3), index / 20))
    assert len(encoders.recent) <= 8


@pytest.mark.parametrize("kind", ["ip-adapter", "ip-adapter-plus"])
def test_an_imported_adapter_through_the_nodes_needs_clip_alone(pack, nodes, demo, rig, kind):
    from flexip_model.adapter import FlexIPAdapter

    model, clip, _, encoders, _, example = demo
    torch.manual_seed(7)
    config = tiny_config(kind=kind, retrieval_width=encoders.encoders.clip.hidden_width)
    adapter = rig.with_tensors(FlexIPAdapter(config).state_dict(), config).adapter
    wires = importlib.import_module(f"{pack.__name__}.nodes.wires")
    encoders_module = importlib.import_module(f"{pack.__name__}.flexip_model.encoders")
    alone = wires.manage_encoders(encoders_module.Encoders(encoders.encoders.clip, None))
    with torch.inference_mode():
        positive, negative, embeds = nodes["FlexIPEncodeReference"].execute(
            alone, adapter, example, prompt(clip, "a cat"), prompt(clip, ""), "center"
        ).args
        assert embeds.preservation.shape[1] == config.queries and adapter.s_key not in positive[0][1]["model_conds"]
        patched = nodes["FlexIPApply"].execute(model, adapter, 1.0, 1.0, 0.0, 1.0).args[0]
        change = rig.predict(patched, positive, negative)[0] - rig.predict(model, positive, negative)[0]
    assert bool(torch.isfinite(change).all()) and change.abs().max() > 1e-3
