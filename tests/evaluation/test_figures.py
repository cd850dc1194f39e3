"""`figure strip`, `style` and `dial`: what stands in the picture and in the record beside it, and users' mistakes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.files.ip_adapter import convert_file

from ..support.encoder_files import CLIP_SPEC
from ..support.encoder_files import save as save_encoder
from ..support.helpers import CHANNELS, tiny_config
from ..support.ip_adapter_files import plus_weights, save
from ..support.paths import SHIPPED
from ..support.tiny_system import write_system
from .making import tiny_benchmark
from .test_generate_ip_adapter import LAYERS
from .tiny_judges import write_clip, write_dino

SIDE = 128  # of the tiny system's pictures
PROMPT = "a cup toy at night"


@pytest.fixture(scope="module")
def world(tmp_path_factory, clip_models):
    folder = tmp_path_factory.mktemp("figures")
    tiny_benchmark(folder / "benchmark")
    write_system(folder / "system")
    tower, _ = clip_models
    tower.save_pretrained(folder / "image_encoder")
    save_encoder(folder / "clip.safetensors", tower.state_dict(), CLIP_SPEC)
    torch.manual_seed(4)
    save(folder / "plus.safetensors", plus_weights(64, tiny_config().text_width, LAYERS, hidden=32))
    assert len(LAYERS) == 16 and max(LAYERS) == max(CHANNELS)
    return folder


def files(world, adapter=True):
    system = world / "system"
    named = ["--base", system, "--steps", 2, "--device", "cpu"]
    if adapter:
        named += ["--adapter", system / "flexip_demo.safetensors"]
        named += ["--clip", system / "encoders" / "clip_vision.safetensors"]
        named += ["--dino", system / "encoders" / "dinov2.safetensors"]
    return [*map(str, named)]


def of_ip_adapter(world):
    return ["--ip-adapter", str(world / "plus.safetensors"), "--image-encoder", str(world / "image_encoder")]


def subject(world, out):
    return [str(world / "benchmark" / "cup.png"), PROMPT, str(out)]


def pixels(path):
    return np.asarray(Image.open(path), int)


def record(out):
    return json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))


def test_a_strip_s_pictures_are_those_that_generate_draws(world, tmp_path):
    out, drawn = tmp_path / "strip.png", tmp_path / "drawn"
    assert main(["figure", "strip", *subject(world, out), "--gammas", "0,0.5,1", "--seeds", "2", *files(world)]) == 0
    same = ["--benchmark", str(world / "benchmark"), "--gammas", "0,0.5,1", "--seeds", "2", "--out", str(drawn)]
    assert main(["evaluate", "generate", *same, *files(world)]) == 0
    sheet = pixels(out)
    size, gap = 12, 4
    for row, seed in enumerate((0, 1)):
        for column, gamma in enumerate(("0", "0.5", "1")):
            x = SIDE + 4 * gap + column * (SIDE + gap)
            y = 2 * (size * 3 // 2) + gap + row * (SIDE + gap)
            cell = sheet[y : y + SIDE, x : x + SIDE]
            assert np.abs(cell - pixels(drawn / "cup" / f"1_{seed}_gamma{gamma}.png")).max() <= 1
    told = record(out)
    assert told["knob"] == "gamma" and told["columns"] == [0, 0.5, 1] and told["rows_are_seeds"] == [0, 1]
    assert told["prompt"] == PROMPT and told["reference"]["file"] == "cup.png" and told["drawn_with"]["steps"] == 2
    assert told["notes"] == []


def test_a_strip_of_an_ip_adapter_turns_its_scale(world, tmp_path):
    out = tmp_path / "strip.png"
    assert main(["figure", "strip", *subject(world, out), *files(world, adapter=False), *of_ip_adapter(world)]) == 0
    told = record(out)
    assert told["knob"] == "scale" and told["drawn_with"]["drawn_by"] == "diffusers' own IP-Adapter"
    assert len(told["columns"]) == 5


def test_style_lays_methods_side_by_side(world, tmp_path):
    out = tmp_path / "style.png"
    references = ["--references", *(str(world / "benchmark" / name) for name in ("dog.png", "hat.png"))]
    prompts = ["--prompts", "a castle", PROMPT]
    turned = ["--gammas", "0,1", "--scales", "0.3"]
    assert (
        main(["figure", "style", str(out), *references, *prompts, *turned, *files(world), *of_ip_adapter(world)]) == 0
    )
    told = record(out)
    assert [(c["name"], c["knob"], c["values"]) for c in told["columns"]] == [
        ("FlexIP", "gamma", [0, 1]),
        ("IP-Adapter", "scale", [0.3]),
        ("base alone", None, [0]),
    ]
    assert [(line["reference"]["file"], line["prompt"]) for line in told["lines"]] == [
        ("dog.png", "a castle"),
        ("dog.png", PROMPT),
        ("hat.png", "a castle"),
        ("hat.png", PROMPT),
    ]
    assert told["notes"] == ["IP-Adapter is drawn by diffusers' own code."]
    sheet, side, gap, line = pixels(out), 192, 6, 22
    assert sheet.shape[1] == 6 * (side + gap) + gap

    def cell(row, column):
        x, y = gap + column * (side + gap), gap + row * (side + line + gap) + line
        return sheet[y : y + side, x : x + side]

    assert (cell(0, 5) == cell(2, 5)).all() and (cell(0, 5) != cell(1, 5)).any()  # the base sees no reference
    assert (cell(0, 3) != cell(2, 3)).any() and (cell(0, 3) != cell(0, 2)).any()


def test_the_dial_measures_both_methods_and_shows_all_plots(world, tmp_path):
    """The IP-Adapter once imported and once by diffusers: the same curves but for how the reference is prepared."""
    write_clip(world / "judge-clip")
    write_dino(world / "judge-dino")
    weights = [f"--weights=clip={world / 'judge-clip'}", f"--weights=dino={world / 'judge-dino'}"]
    turned = ["--gammas", "0:1:0.25", "--seeds", "2", *weights]
    both, imported = tmp_path / "both.png", tmp_path / "imported.png"
    assert main(["figure", "dial", *subject(world, both), *turned, *files(world), *of_ip_adapter(world)]) == 0
    told = record(both)
    assert [method["name"] for method in told["methods"]] == ["FlexIP, gamma", "IP-Adapter, scale"]
    assert told["preservation"] == "dino-i" and set(told["weights"]) == {"dino-i", "clip-i", "clip-t"}
    for method in told["methods"]:
        for name in ("preservation", "fidelity"):
            assert np.array(method[name], float).shape == (2, 5) and np.ptp(np.array(method[name], float)) > 0
        assert np.mean(method["speed"]) == pytest.approx(1, abs=1e-4)
        assert {"largest_jump", "path_ratio", "spearman_preservation", "range_fidelity"} <= set(method["control"])
    assert not any("no independent judge" in note for note in told["notes"])
    convert_file(world / "plus.safetensors", tmp_path / "converted.safetensors")
    own = ["--base", world / "system", "--adapter", tmp_path / "converted.safetensors", "--steps", 2, "--device", "cpu"]
    own += ["--clip", world / "clip.safetensors"]
    assert main(["figure", "dial", *subject(world, imported), *turned, *map(str, own)]) == 0
    (other,) = record(imported)["methods"]
    assert other["name"] == "IP-Adapter, scale"
    found = [np.array(method["preservation"], float) for method in (other, told["methods"][1])]
    assert np.abs(found[0] - found[1]).max() < 0.05
    assert pixels(both).shape[1] == pixels(imported).shape[1] and pixels(both).shape[0] > pixels(imported).shape[0]


def test_the_dial_of_the_model_that_ships_says_what_it_cannot_tell(tmp_path):
    out = tmp_path / "dial.png"
    reference = str(SHIPPED / "examples" / "turtle.webp")
    turned = ["--gammas", "0,0.5,1", "--seeds", "1", "--steps", "2", "--device", "cpu"]
    assert main(["figure", "dial", reference, "a 3d render of a turtle", str(out), *turned]) == 0
    told = record(out)
    assert [method["name"] for method in told["methods"]] == ["FlexIP, gamma", "preservation branch alone, strength"]
    flexip, alone = told["methods"]
    assert flexip["drawn_with"]["guidance"] == 3 and flexip["fidelity"] == [[None, None, None]]
    assert flexip["preservation"][0][2] == pytest.approx(alone["preservation"][0][2], abs=1e-4)
    text = " ".join(told["notes"])
    for words in ("small model that ships", "no independent judge", "not a published IP-Adapter", "CLIP-T stays empty"):
        assert words in text


def test_strip_and_style_of_the_model_that_ships(tmp_path):
    few = ["--steps", "2", "--device", "cpu"]
    reference = str(SHIPPED / "examples" / "wolf.webp")
    assert main(["figure", "strip", reference, "a wolf", str(tmp_path / "strip.png"), *few]) == 0
    named = ["--references", reference, "--prompts", "a high contrast drawing of a wolf"]
    assert main(["figure", "style", str(tmp_path / "style.png"), *named, *few]) == 0
    assert "cannot take a style out of a picture" in record(tmp_path / "style.png")["notes"][0]
    assert record(tmp_path / "strip.png")["columns"] == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ("strip", ["--gammas", "0:2:1"], "expected numbers from 0"),
        ("strip", ["--seeds", "0"], "--seeds is 0"),
        ("strip", ["--steps", "0"], "--steps is 0"),
        ("strip", ["--batch", "0"], "--batch is 0"),
        ("strip", ["--ip-adapter", "PLUS"], "a strip turns one knob"),
        ("dial", ["--gammas", "0,1"], "at least three, rising"),
        ("dial", ["--gammas", "1,0.5,0"], "at least three, rising"),
        ("dial", ["--weights", "judge"], "expected ROLE=FOLDER"),
        ("dial", ["--image-encoder", "folder"], "belongs to --ip-adapter"),
        ("dial", ["--ip-adapter", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
        ("dial", ["--ip-adapter", "PLUS", "--image-encoder", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_mistakes_get_one_sentence(world, tmp_path, capsys, caplog, kind, more, told):
    out = tmp_path / "figure.png"
    more = [str(world / "plus.safetensors") if word == "PLUS" else word for word in more]
    assert main(["figure", kind, *subject(world, out), *files(world), *more]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told in line and not out.exists() and not out.with_suffix(".json").exists()
    assert "pictures" not in caplog.text  # nothing was drawn


def test_files_go_together_and_references_are_looked_at(world, tmp_path, capsys):
    def told(*arguments):
        assert main(["figure", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    out = tmp_path / "figure.png"
    assert "go together" in told("strip", *subject(world, out), "--adapter", "a.safetensors")
    assert "go together" in told("strip", *subject(world, out), *files(world, adapter=False))
    assert "ends in .png" in told("strip", *subject(world, tmp_path / "figure.jpg"))
    assert "nowhere.png is missing" in told("strip", "nowhere.png", PROMPT, out)
    assert "nowhere.png is missing" in told("style", out, "--references", "nowhere.png", "--prompts", "a")
