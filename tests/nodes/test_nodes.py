"""The nodes as their user meets them: frozen names, messages, what each gives."""

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..support.comfy_rig import prompt
from ..support.helpers import tiny_config
from ..support.paths import ROOT

# Frozen once released: only optional inputs may be added.
FROZEN = {
    "FlexIPLoadEncoders": (["clip_vision", "dinov2"], ["FLEXIP_ENCODERS"]),
    "FlexIPLoadAdapter": (["adapter_name"], ["FLEXIP_ADAPTER"]),
    "FlexIPLoadDemo": (["example"], ["MODEL", "CLIP", "VAE", "FLEXIP_ENCODERS", "FLEXIP_ADAPTER", "IMAGE"]),
    "FlexIPExampleImage": (["example"], ["IMAGE"]),
    "FlexIPEncodeReference": (
        ["positive", "negative", "encoders", "adapter", "image", "crop", "mask"],
        ["CONDITIONING", "CONDITIONING", "FLEXIP_EMBEDS"],
    ),
    "FlexIPApply": (
        ["model", "adapter", "gamma", "strength", "start", "end", "gamma_map", "attention_mask", "curve", "layers"],
        ["MODEL"],
    ),
    "FlexIPGammaSweep": (
        ["model", "latent", "adapter", "gammas", "strength", "start", "end"],
        ["MODEL", "LATENT", "FLEXIP_GAMMAS"],
    ),
    "FlexIPSweepGrid": (["images", "gammas", "reference", "title", "labels"], ["IMAGE"]),
    "FlexIPRecordAttention": (["model", "adapter"], ["MODEL", "FLEXIP_ATTENTION"]),
    "FlexIPAttentionMaps": (
        ["images", "latent", "recording", "branch", "kind", "first_step", "last_step", "layers", "embeds"],
        ["IMAGE"],
    ),
    "FlexIPScore": (
        ["images", "encoders", "reference", "prompt"],
        ["FLOAT", "FLOAT", "FLOAT", "FLEXIP_LABELS", "STRING"],
    ),
    "FlexIPFindGamma": (
        [
            *["model", "positive", "negative", "latent_image", "vae", "adapter", "encoders", "score", "target"],
            *["tolerance", "most", "seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"],
            *["reference", "prompt", "strength", "start", "end"],
        ],
        ["FLOAT", "IMAGE", "FLOAT", "STRING"],
    ),
}


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


@pytest.mark.promise(2)
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
    ("given", "values"),
    [
        ("[0, 0.5, 1]", [0, 0.5, 1]),
        ("[0,0.5,1]", [0, 0.5, 1]),
        (" [0.25] ", [0.25]),
        ("0 .5 1", [0, 0.5, 1]),
        (1, [1]),
        (0.3, [0.3]),
        ([0, 0.5, 1], [0, 0.5, 1]),
        ((1, 0), [1, 0]),
    ],
)
def test_gammas_mean_what_they_say_typed_or_connected(nodes, demo, given, values):
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    _, latents, gammas = nodes["FlexIPGammaSweep"].execute(demo[0], demo[4], latent, given).args
    assert gammas == values and len(latents["samples"]) == len(values)


@pytest.mark.parametrize(
    "given", [[], [[0, 1]], True, None, [0.5, "1"], [0, 2], math.nan, -1, [0.1] * 65, "[0, 1", "[]"]
)
def test_other_values_for_gammas_are_refused_with_what_they_were(nodes, demo, given):
    with pytest.raises(ValueError, match=r"γ is .*; expected|the list of γ has 65 values; expected at most 64"):
        nodes["FlexIPGammaSweep"].execute(demo[0], demo[4], {"samples": torch.zeros(1, 4, 8, 8)}, given)


def test_a_curve_may_stand_in_brackets(nodes, demo):
    schedule = importlib.import_module(nodes["FlexIPApply"].__module__.replace("apply", "schedule"))
    assert schedule.parse_curve("[1, 0.8, 0.2]") == schedule.parse_curve("1, 0.8, 0.2")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.2}, "expected numbers from 0"),
        ({"gamma": [0.5, 1.2]}, "expected numbers from 0"),
        ({"gamma": "full"}, 'γ is "full"'),
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
