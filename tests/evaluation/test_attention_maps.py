"""`attention-maps`: a picture with its maps from an adapter, a base and encoders; what a user gets wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.evaluation.figures import attention_maps as module
from flexip_model.evaluation.figures.cli import read_step_range
from flexip_model.hosts import diffusers as host_module
from flexip_model.method.inside.record import AttentionRecord
from flexip_model.method.sites import choose_sites


@pytest.fixture
def arguments(tiny_folder, tmp_path):
    """All but the options: reference, prompt, out, and the tiny system's files."""
    encoders = tiny_folder / "encoders"
    return [
        "attention-maps",
        str(tiny_folder / "examples" / "gradient.png"),
        "a cat",
        str(tmp_path / "maps.png"),
        *("--adapter", str(tiny_folder / "flexip_demo.safetensors"), "--base", str(tiny_folder)),
        *("--clip", str(encoders / "clip_vision.safetensors"), "--dino", str(encoders / "dinov2.safetensors")),
        *("--steps", "3", "--device", "cpu"),
    ]


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_a_sheet_of_everything_and_of_some_layers_and_steps(arguments, tmp_path, capsys):
    out = tmp_path / "maps.png"
    assert main(arguments) == 0
    assert "maps.png: 1156 × 1014 pixels" in capsys.readouterr().out
    whole = pixels(out)
    assert main(arguments) == 0 and (pixels(out) == whole).all()
    assert main([*arguments, "--layers", "up_blocks.1", "--step-range", "2:3"]) == 0
    some = pixels(out)
    picture = np.s_[504:760, :236]
    assert (some[picture] == whole[picture]).all() and (some != whole).any()
    assert main([*arguments, "--gamma", "1", "--size", "192", "--seed", "4"]) == 0


def test_what_is_shown_is_what_was_asked_for(tiny_folder, monkeypatch):
    """The mean over the chosen layers and steps goes to the sheet, of the half with the prompt."""
    seen = {}
    mean = AttentionRecord.mean

    def note(self, *chosen):
        seen["record"], seen["chosen"] = self, chosen
        return mean(self, *chosen)

    monkeypatch.setattr(AttentionRecord, "mean", note)
    encoders = tiny_folder / "encoders"
    models = module.load_models(
        tiny_folder / "flexip_demo.safetensors",
        tiny_folder,
        encoders / "clip_vision.safetensors",
        encoders / "dinov2.safetensors",
        torch.device("cpu"),
    )
    sites = choose_sites("mid")
    generation = module.Generation("a cat", gamma=0.2, steps=4)
    module.attention_maps(models, Image.new("RGB", (40, 40), "green"), generation, sites=sites, first=2, last=3)
    assert seen["chosen"] == (sites, 2, 3)
    assert (seen["record"].steps, seen["record"].pictures) == (4, 1)
    assert not any(
        isinstance(processor, host_module.GatedAttnProcessor) for processor in models.base.unet.attn_processors.values()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--gamma", "1.5"], "expected numbers from 0"),
        (["--layers", "head"], 'there is no block "head"'),
        (["--step-range", "3:2"], 'the step range is "3:2"'),
        (["--step-range", "2:9"], "there are 3 steps"),
        (["--size", "100"], "the size is 100"),
        (["--strength", "0"], "strength above 0"),
        (["--steps", "0"], "at least one step"),
        (["--dino", "none.safetensors"], "none.safetensors"),
        (["--base", "nowhere"], "there is no base nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, changes, message, capsys, tmp_path):
    assert main([*arguments, *changes]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and message in told
    assert not (tmp_path / "maps.png").exists()


def test_files_go_together_and_the_picture_has_a_place(arguments, capsys, tmp_path):
    assert main([*arguments[:4], "--adapter", "a.safetensors"]) == 2
    assert "go together" in capsys.readouterr().err
    assert main([*arguments[:3], str(tmp_path / "maps.txt"), *arguments[4:]]) == 2
    assert "ends in .png" in capsys.readouterr().err
    text = tmp_path / "words.txt"
    text.write_text("words")
    assert main([arguments[0], str(text), *arguments[2:]]) == 2
    assert "cannot be read as a picture" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "range_"), [("", (1, 0)), ("2:5", (2, 5)), (":5", (1, 5)), ("3:", (3, 0))])
def test_step_ranges(text, range_):
    assert read_step_range(text) == range_


@pytest.mark.parametrize("text", ["5", "0:3", "a:b", "-1:3", "2:1", "1:0"])
def test_other_step_ranges_are_refused(text):
    with pytest.raises(FlexIPError, match="expected FIRST:LAST"):
        read_step_range(text)
