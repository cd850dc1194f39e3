"""`run.py`, as a person at a terminal meets it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
from PIL import Image

from flexip_model.comfyui import ComfyServer

from ..support.comfy_server import comfyui_path
from ..support.paths import ROOT

BOOTSTRAP = (
    "run.py",
    "requirements.txt",
    "flexip_model/__init__.py",
    *(f"flexip_model/common/{name}.py" for name in ("__init__", "errors", "gammas")),
)


def run(*arguments: str | Path, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run run.py with this test's ComfyUI."""
    return subprocess.run(
        [sys.executable, str(root / "run.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def bootstrap(folder: Path) -> Path:
    """A copy of what run.py needs before anything is installed."""
    for name in BOOTSTRAP:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def load(root: Path) -> ModuleType:
    """run.py of a folder, as a module."""
    spec = importlib.util.spec_from_file_location("run_under_test", root / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_comfyui(folder: Path, version: str) -> Path:
    """A folder that looks like ComfyUI from outside."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("run.py: ")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--reference", "no/such/picture.png"), "picture.png"),
        (("--gammas", "0:2:0.5"), "0:2:0.5"),
        (("--gammas", "0:1:-0.5"), "step"),
        (("--gammas", "half"), "half"),
        (("--gammas", "nan"), "nan"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_bad_demo_arguments_are_one_sentence(tmp_path: Path, arguments: tuple[str, str], word: str) -> None:
    assert_one_sentence(run("demo", *arguments, "--out", tmp_path), word)


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_one_sentence(run("demo", "--out", tmp_path / "file" / "out"), "--out")


def test_taken_port_is_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert_one_sentence(run("comfyui", "--port", port), port, "--port")


def test_what_is_no_picture_is_one_sentence(tmp_path: Path) -> None:
    text = tmp_path / "letter.png"
    text.write_text("Dear all")
    assert_one_sentence(run("demo", "--reference", text, "--out", tmp_path), "letter.png", "not a picture")


def test_copy_without_tests_is_one_sentence(tmp_path: Path) -> None:
    assert_one_sentence(run("test", root=bootstrap(tmp_path)), "tests", "clone")


def test_full_disk_is_one_sentence_before_the_tests_begin(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    module = load(ROOT)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * 10**9))
    assert module.main(["test", "-q"]) == 2
    said = capsys.readouterr().err
    assert "write up to 8 GB" in said and "has 4.0 GB free" in said and "TMPDIR" in said
    module.check(argparse.Namespace(command="test"), ["tests/method"])  # some of them need less


def test_no_network_is_one_sentence(tmp_path: Path) -> None:
    root = bootstrap(tmp_path / "pack")
    closed = "http://127.0.0.1:9/simple"
    unset = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "COMFYUI_PATH": ""}
    assert_one_sentence(run("demo", root=root, PIP_INDEX_URL=closed, **unset), "network")


def test_wrong_comfyui_path_is_one_sentence(tmp_path: Path) -> None:
    assert_one_sentence(run("demo", "--out", tmp_path, COMFYUI_PATH=str(tmp_path)), "COMFYUI_PATH", str(tmp_path))
    old = fake_comfyui(tmp_path / "old", "0.3.74")
    assert_one_sentence(run("demo", "--out", tmp_path, COMFYUI_PATH=str(old)), "0.3.74", "0.3.75")


def test_comfyui_is_the_named_one_then_the_surrounding_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    around, named = fake_comfyui(tmp_path / "around", "0.3.75"), fake_comfyui(tmp_path / "named", "0.10.1")
    inside = load(bootstrap(around / "custom_nodes" / "ComfyUI-FlexIP"))
    alone = load(bootstrap(tmp_path / "clone"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert inside.find_comfyui() == around
    assert alone.find_comfyui() is None
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert inside.find_comfyui() == named
    assert alone.find_comfyui() == named


def test_installs_once_until_the_list_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going back to the first list installs again: the second one, another ComfyUI's, has replaced its versions."""
    module = load(bootstrap(tmp_path))
    module.VENV.mkdir()
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(module, "pip", lambda *arguments: calls.append(arguments))
    wanted = tmp_path / "wanted.txt"
    for content, installs in (("one", 1), ("one", 1), ("two", 2), ("two", 2), ("one", 3)):
        wanted.write_text(content)
        module.install("runtime", [wanted], ())
        assert len(calls) == installs


def test_demo_makes_a_sweep_of_my_picture(tmp_path: Path) -> None:
    picture = tmp_path / "my cat ü.webp"
    Image.new("RGBA", (90, 60), (200, 60, 30, 128)).save(picture)
    out = tmp_path / "out"
    wanted = ("--reference", picture, "--prompt", "a cat", "--gammas", "0, 1", "--seed", "5", "--out", out)
    done = run("demo", *wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["gamma_0.00.png", "gamma_1.00.png", "sweep.png"]
    with Image.open(out / "sweep.png") as sweep:
        assert sweep.width > 3 * 128
        made_by = json.loads(sweep.text["prompt"])
        red, green, blue = sweep.convert("RGB").getpixel((sweep.height // 2, sweep.height * 2 // 3))
    assert red > green > blue, "my picture stands on the left"
    settings = {(node["class_type"], key): value for node in made_by.values() for key, value in node["inputs"].items()}
    assert settings["KSampler", "seed"] == 5
    assert settings["FlexIPGammaSweep", "gammas"] == "0, 1"
    assert "a cat" in [node["inputs"].get("text") for node in made_by.values()]
    assert str(out / "sweep.png") in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent as a POSIX signal here")
def test_ctrl_c_leaves_no_server(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py"), "demo", "--out", str(tmp_path)]
    # A shell starts its background jobs with SIGINT ignored, and children inherit that, but never a handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        while "Starting ComfyUI" not in (line := process.stdout.readline()):
            assert line, "ended early"
        end = time.monotonic() + 60
        while not (children := psutil.Process(process.pid).children(recursive=True)):
            assert time.monotonic() < end
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130
    assert "Traceback" not in rest
    assert psutil.wait_procs(children, timeout=30)[1] == []


def test_comfyui_itself_is_not_written_to(server: ComfyServer) -> None:
    host = comfyui_path()
    assert server.get("/system_stats")
    assert not (host / "user").exists()
    assert not (host / "temp").exists()
    assert not (host / "custom_nodes" / "ComfyUI-FlexIP").exists()


def test_hosts_tells_each_comfyui_in_a_line(tmp_path: Path) -> None:
    assert_one_sentence(run("hosts", tmp_path), "no main.py of ComfyUI", str(tmp_path))
    module = load(ROOT)
    comfyui = fake_comfyui(tmp_path / "new", "0.99.1")
    (comfyui / "requirements.txt").write_text("comfyui-frontend-package==9.8.7\ntorch\n")
    report = tmp_path / "results.xml"
    report.write_text(
        '<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="0" tests="560" time="600.2"/>'
        "</testsuites>"
    )
    line = module.host_line(comfyui, "all tests", report)
    assert line.startswith("| 0.99.1 | 9.8.7 | all tests | 20")
    assert line.endswith("| 557 passed, 3 failed, 10 min |")
    assert module.host_line(comfyui, "all tests", tmp_path / "none.xml").endswith("| did not run |")
