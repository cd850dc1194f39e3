"""`evaluate generate`: the tiny system through the diffusers host, resumed, shared out, over γ, scale and strength."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.encoders import Encoders, load_clip, load_dino
from flexip_model.evaluation.benchmarks.opening import open_benchmark
from flexip_model.evaluation.generate import draw
from flexip_model.evaluation.generate.base import load_base
from flexip_model.evaluation.pictures.forms import read_pictures
from flexip_model.files.adapter_file import build_adapter, load_adapter_file
from flexip_model.hosts.condition import Condition
from flexip_model.hosts.denoise import denoise
from flexip_model.hosts.diffusers import inject
from flexip_model.method.gate import gamma_tensor

from ..support.paths import ROOT
from ..support.tiny_system import write_configs, write_single_file, write_system
from .making import tiny_benchmark

ENCODERS = ("clip_vision", "dinov2")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    tiny_benchmark(folder / "benchmark")
    write_system(folder / "system")
    return folder


def command(world, out, *more, adapter=True, seeds=1):
    system = world / "system"
    named = ["--adapter", system / "flexip_demo.safetensors"] if adapter else []
    named += ["--clip", system / "encoders" / "clip_vision.safetensors"] if adapter else []
    named += ["--dino", system / "encoders" / "dinov2.safetensors"] if adapter else []
    rest = ["--benchmark", world / "benchmark", "--base", system, "--out", out, "--steps", 2, "--device", "cpu"]
    return ["evaluate", "generate", *map(str, [*rest, "--seeds", seeds, *named, *more])]


@pytest.fixture(scope="module")
def clean(world):
    assert main(command(world, world / "clean", "--gammas", "0,0.5,1")) == 0
    return world / "clean"


def files(folder):
    """All but the hidden temporaries that a kill in the middle of a write leaves."""
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and not (p.name[0] == "." and p.suffix == ".tmp")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in kept}


def test_pictures_and_manifests_are_the_plain_form(world, clean):
    found = read_pictures("mine", clean, open_benchmark(world / "benchmark"))
    assert len(found.pictures) == 3 * 2 * 3 and found.problems == () and found.swept_knob() == "gamma"
    entry = json.loads((clean / "dog" / "0_0_gamma0.5.json").read_text())
    assert entry["prompt"] == "a dog toy on grass" and entry["steps"] == 2 and entry["guidance"] == 7.5
    assert len(entry["base"]) == 16 and len(entry["adapter"]) == 64 and len(entry["encoders"]["clip"]) == 16


def test_a_picture_is_what_the_host_draws(world, clean):
    """The same by hand, one picture alone, from the same noise."""
    system = world / "system"
    base = load_base(system)
    info, tensors = load_adapter_file(system / "flexip_demo.safetensors")
    adapter = build_adapter(info, tensors)
    encoders = Encoders(
        *(
            load(system / "encoders" / f"{n}.safetensors")
            for load, n in zip((load_clip, load_dino), ENCODERS, strict=True)
        )
    )
    with Image.open(world / "benchmark" / "cup.png") as picture:
        features = encoders.encode(picture.convert("RGB"))
    null = encoders.null(1)
    text = base.read(["a cup toy at night", ""])
    cls, patches = torch.cat([features.cls, null.cls]), torch.cat([features.patches, null.patches])
    host = inject(base.unet, adapter)
    with torch.no_grad():
        p, s = adapter.preservation(type(features)(cls, patches)), adapter.personalization(text, cls)
    host.condition = Condition(p, s, gamma_tensor([0.5, 0.5]))
    side = base.size // base.scale
    noise = torch.randn(4, side, side, generator=torch.Generator().manual_seed(0))[None]
    wanted = base.decode(denoise(base.unet, base.scheduler, noise, text, steps=2, guidance=7.5))[0]
    with Image.open(clean / "cup" / "1_0_gamma0.5.png") as drawn:
        assert np.abs(np.asarray(drawn, float) / 255 - wanted.permute(1, 2, 0).numpy()).max() < 1.5 / 255


def test_gamma_and_strength_change_pictures_and_strength_0_is_the_base(world, clean):
    out, base = world / "strength", world / "base"
    assert main(command(world, out, "--gammas", "0.5", "--strengths", "0,2")) == 0
    assert main(command(world, base, adapter=False)) == 0
    made = files(clean) | files(out)
    assert made["dog/0_0_gamma0.png"] != made["dog/0_0_gamma1.png"]
    assert made["dog/0_0_gamma0.5.png"] != made["dog/0_0_gamma0.5_strength2.png"]
    assert made["dog/0_0_gamma0.5_strength0.png"] == files(base)["dog/0_0.png"]
    assert read_pictures("base", base, open_benchmark(world / "benchmark")).swept_knob() is None


def test_what_was_cut_off_goes_on_to_the_same_end(world, clean, monkeypatch):
    out = world / "cut"
    shutil.copytree(clean, out)
    for name in ("dog/0_0_gamma1.json", "hat/1_0_gamma0.json", "hat/1_0_gamma0.png"):
        (out / name).unlink()
    drawn = []
    original = draw.Drawer.draw
    monkeypatch.setattr(draw.Drawer, "draw", lambda self, jobs: drawn.append(len(jobs)) or original(self, jobs))
    assert main(command(world, out, "--gammas", "0,0.5,1")) == 0
    assert files(out) == files(clean)
    assert drawn == [4, 4]


def test_other_settings_are_refused_in_the_same_folder(world, clean, capsys):
    assert main(command(world, clean, "--gammas", "0,0.5,1", "--guidance", "3")) == 2
    assert "was drawn with other settings" in capsys.readouterr().err


def test_killed_half_way_two_processes_end_as_a_clean_run(world, clean):
    """`--processes 2`, all of it ended by SIGKILL when two batches are there; the same command then goes on."""
    out = world / "killed"
    arguments = [sys.executable, "-m", "flexip_model", *command(world, out, "--gammas", "0,0.5,1", "--processes", 2)]
    process = subprocess.Popen(
        arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 300:
        if len(list(out.rglob("*.json"))) >= 2:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    count = -1
    while count != (count := len(files(out))):  # until what it started has ended too
        time.sleep(1)
    assert 2 <= len(list(out.rglob("*.json"))) < 18
    assert subprocess.run(arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0
    assert files(out) == files(clean)


def test_a_reference_that_cannot_be_read_leaves_its_subject_out(world, tmp_path, capsys):
    """It is named; the others are drawn; scores count its pictures as missing. The base alone reads no reference."""
    folder = tmp_path / "benchmark"
    shutil.copytree(world / "benchmark", folder)
    (folder / "cup.png").write_bytes(b"no picture")
    named = ["--benchmark", folder]
    assert main(command(world, tmp_path / "out", *named)) == 0
    assert f"problem: subject cup: {folder / 'cup.png'} cannot be read" in capsys.readouterr().out
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.png")} == {"dog", "hat"}
    found = read_pictures("mine", tmp_path / "out", open_benchmark(folder))
    assert any("cup" in problem for problem in found.problems)
    assert main(command(world, tmp_path / "base", *named, adapter=False)) == 0
    assert {path.parent.name for path in (tmp_path / "base").rglob("*.png")} == {"cup", "dog", "hat"}
    for name in ("dog.png", "hat.png"):
        (folder / name).write_bytes(b"no picture")
    assert main(command(world, tmp_path / "none", *named)) == 2
    assert "none of the references" in capsys.readouterr().err


def test_a_prompt_that_is_cut_is_told_once(world, tmp_path, capsys):
    folder = tmp_path / "benchmark"
    shutil.copytree(world / "benchmark", folder)
    (folder / "prompts.csv").write_text(f"subject,prompt\n,a {{}} {'x ' * 90}\ncup,short\n", encoding="utf-8")
    assert main(command(world, tmp_path / "out", "--benchmark", folder, adapter=False, seeds=6)) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "77 first are read" in line]
    assert len(told) == 3 and not any("short" in line for line in told)


def test_two_processes_draw_what_one_does(world, clean, monkeypatch):
    """As accelerate launch or torchrun start them."""
    out = world / "two"
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert main(command(world, out, "--gammas", "0,0.5,1")) == 0
        assert (len(files(out)) < len(files(clean))) == (rank == 0)
    assert files(out) == files(clean)


def test_a_padded_reference_leaves_its_padding_out(world):
    """A reference that is not square: padded, its padding's patches do not count."""
    folder = world / "wide"
    shutil.copytree(world / "benchmark", folder)
    with Image.open(folder / "dog.png") as picture:
        picture.resize((64, 20)).save(folder / "dog.png")
    wide = ["--benchmark", str(folder), "--gammas", "1"]
    assert main(command(world, world / "padded", *wide, "--crop", "pad")) == 0
    assert main(command(world, world / "centered", *wide)) == 0
    assert files(world / "padded")["dog/0_0_gamma1.png"] != files(world / "centered")["dog/0_0_gamma1.png"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--gammas", "0,2"), "from 0 to 1"),
        (("--gammas", "a"), "expected numbers"),
        (("--size", "30"), "expected a multiple of"),
        (("--base", "nowhere"), "there is no base nowhere"),
        (("--seeds", "0"), "at least 1"),
    ],
)
def test_mistakes_get_one_sentence(world, tmp_path, capsys, more, told):
    assert main(command(world, tmp_path, *more)) == 2
    assert told in capsys.readouterr().err


def test_two_pictures_never_get_one_name(world, tmp_path, capsys):
    assert main(command(world, tmp_path, "--gammas", "0.5,0.50000001")) == 2
    assert "would get one name" in capsys.readouterr().err


def test_encoders_and_parts_that_are_missing_are_told(world, tmp_path, capsys):
    adapter = world / "system" / "flexip_demo.safetensors"
    assert main(command(world, tmp_path, "--adapter", adapter, adapter=False)) == 2
    told = capsys.readouterr().err
    assert "name --clip FILE and --dino FILE" in told and "dinov2-large" in told and "h94/IP-Adapter" in told
    assert main(command(world, tmp_path, "--dino", tmp_path / "none.safetensors")) == 2
    told = capsys.readouterr().err
    assert f"there is no file {tmp_path / 'none.safetensors'}" in told and "facebook/dinov2-large" in told
    broken = tmp_path / "system"
    shutil.copytree(world / "system", broken, copy_function=os.link)
    shutil.rmtree(broken / "vae")
    assert main(command(world, tmp_path / "out", "--base", broken)) == 2
    assert "has no folder vae" in capsys.readouterr().err
    assert main(command(world, tmp_path / "out", "--base", adapter)) == 2
    assert "--base-configs" in capsys.readouterr().err


def test_a_single_file_is_the_folder_it_was_made_of(world, tmp_path, comfy):
    """With a folder of configs beside it; the configs' own weights are not read."""
    configs = write_configs(world / "system", tmp_path / "configs")
    file = write_single_file(world / "system", tmp_path / "tiny.safetensors")
    folder, loaded = load_base(world / "system"), load_base(file, configs)
    assert loaded.hash == folder.hash
    for name in ("unet", "vae", "text_encoder"):
        a, b = (getattr(base, name).state_dict() for base in (folder, loaded))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert torch.equal(folder.read(["a dog"]), loaded.read(["a dog"]))
    pictures = {}
    for name, base in (("folder", [world / "system"]), ("file", [file, "--base-configs", configs])):
        system, few = world / "system", ["--steps", 2, "--device", "cpu"]
        encoders = [system / "encoders" / f"{encoder}.safetensors" for encoder in ENCODERS]
        drawn = ["--base", *base, "--adapter", system / "flexip_demo.safetensors", "--clip", encoders[0]]
        subject = [world / "benchmark" / "cup.png", "a cup"]
        for figure in (["figure", "strip"], ["attention-maps"]):
            out = tmp_path / f"{name}-{figure[-1]}.png"
            assert main([*figure, *map(str, [*subject, out, *drawn, "--dino", encoders[1], *few])]) == 0
            pictures[name, figure[-1]] = out.read_bytes()
    assert pictures["folder", "strip"] == pictures["file", "strip"]
    assert pictures["folder", "attention-maps"] == pictures["file", "attention-maps"]
