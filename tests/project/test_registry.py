"""What the ComfyUI registry gets: the fields that it reads, and the archive, installed in a real ComfyUI."""

from __future__ import annotations

import ast
import copy
import io
import re
import subprocess
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pathspec import PathSpec
from PIL import Image, ImageStat

from flexip_model.comfyui import ComfyClient, ComfyServer
from flexip_model.comfyui.client import RunResult

from ..end_to_end.test_run import load
from ..support.comfy_server import ALL_WORKFLOWS, api_workflow, comfyui_path, node_of
from ..support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NODES = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = PYPROJECT["project"], PYPROJECT["tool"]["comfy"]
MEGABYTES = 40
"""Bound of what is downloaded to install the pack; the weights of the small model are 32 of them."""


def in_git() -> list[str]:
    """The files that git tracks."""
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no clone with git: the registry's archive is made of what git tracks")
    return [name for name in listed.split("\0") if name]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that `comfy node publish` uploads: what git tracks, without what .comfyignore names.

    As in comfy-cli's `zip_files`; its "gitwildmatch" is the old name of these patterns.
    """
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    ignored = PathSpec.from_lines("gitignore", patterns)
    path = tmp_path_factory.mktemp("registry") / "node.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in in_git():
            if not ignored.match_file(name) and (ROOT / name).exists():
                file.write(ROOT / name, name)
    return path


@pytest.fixture(scope="module")
def installed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI in which the archive lies where the registry's clients unpack it, writing to a Windows console."""
    base = tmp_path_factory.mktemp("comfyui")
    with zipfile.ZipFile(archive) as file:
        file.extractall(base / "custom_nodes" / PROJECT["name"])
    console = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    with ComfyServer(comfyui_path(), base, pack=None, environment=console) as running:
        yield running


def fetch(server: ComfyServer, path: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.url + path, timeout=30) as reply:
        content: bytes = reply.read()
    return content


def test_fields_have_the_registry_s_form() -> None:
    """https://docs.comfy.org/registry/specifications."""
    name = PROJECT["name"]
    assert re.fullmatch(r"[A-Za-z](?:[._-]?[A-Za-z0-9]+)*", name)
    assert len(name) < 100
    assert "comfyui" not in name.lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert set(PROJECT["license"]) in ({"file"}, {"text"})
    assert PROJECT["license"].get("text") or (ROOT / PROJECT["license"]["file"]).is_file()
    assert 20 < len(PROJECT["description"]) < 300
    assert "Operating System :: OS Independent" in PROJECT["classifiers"]
    accelerators = {entry for entry in PROJECT["classifiers"] if entry.startswith("Environment ::")}
    assert all(re.fullmatch(r"Environment :: (GPU|NPU) :: .+", entry) for entry in accelerators)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", COMFY["PublisherId"])
    assert COMFY["DisplayName"]
    assert re.fullmatch(r"|https://\S+\.(svg|png|jpg|gif)", COMFY["Icon"])


def test_addresses_are_those_of_one_repository() -> None:
    urls = PROJECT["urls"]
    assert {"Repository", "Documentation", "Bug Tracker"} <= set(urls)
    assert re.fullmatch(r"https://github\.com/[\w-]+/[\w.-]+", urls["Repository"])
    assert all(address.startswith(urls["Repository"]) for address in urls.values())


def test_lists_of_requirements_agree() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert PYPROJECT["project"]["dependencies"] == [line for line in lines if line and not line.startswith("#")]
    extras = PYPROJECT["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
    assert set(extras) == {"train", "eval", "test"}
    assert set(extras["test"]["file"]) == set(load(ROOT).TEST_REQUIREMENTS)
    assert all((ROOT / name).is_file() for extra in extras.values() for name in extra["file"])


def test_oldest_comfyui_is_the_one_that_run_py_takes() -> None:
    oldest = re.search(r"^OLDEST_COMFYUI = \((\d+), (\d+), (\d+)\)", (ROOT / "run.py").read_text("utf-8"), re.MULTILINE)
    assert oldest is not None
    assert COMFY["requires-comfyui"] == ">=" + ".".join(oldest.groups())


def test_node_ids_can_be_read_from_the_source() -> None:
    """Tools that tell which pack has a missing node do not run every pack."""
    module = ast.parse((ROOT / "nodes" / "__init__.py").read_text(encoding="utf-8"))
    (mapping,) = [
        statement.value
        for statement in module.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "NODE_CLASS_MAPPINGS"
    ]
    assert isinstance(mapping, ast.Dict)
    assert {ast.literal_eval(key) for key in mapping.keys if key is not None} == NODES


def test_archive_holds_what_is_used_and_no_more(archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {
        "CHANGELOG.md",
        "LICENSE",
        "NOTICE",
        "README.md",
        "__init__.py",
        "flexip_model",
        "models",
        "nodes",
        "pyproject.toml",
        "requirements-eval.txt",
        "requirements-train.txt",
        "requirements.txt",
        "run.py",
        "web",
        "workflows",
    }
    code_and_data = ("flexip_model/", "models/", "nodes/", "web/", "workflows/")
    wanted = {name for name in in_git() if name.startswith(code_and_data)}
    assert {name for name in names if name.startswith(code_and_data)} == wanted


def test_archive_is_no_larger_than_it_must_be(archive: Path) -> None:
    size = archive.stat().st_size / 1e6
    print(f"the registry's archive: {size:.1f} MB")
    assert size < MEGABYTES


def test_nodes_and_help_pages_come_with_it(installed: ComfyServer) -> None:
    registered = {name: node for name, node in installed.get("/object_info").items() if name.startswith("FlexIP")}
    assert set(registered) == NODES
    assert len(NODES) == 12
    for name, node in registered.items():
        module = node["python_module"]
        assert module == f"custom_nodes.{PROJECT['name']}"
        page = fetch(installed, f"/extensions/{module.split('.')[1]}/docs/{name}.md")
        assert page == (ROOT / "web" / "docs" / f"{name}.md").read_bytes()


def test_templates_and_thumbnails_come_with_it(installed: ComfyServer) -> None:
    assert sorted(installed.get("/workflow_templates")[PROJECT["name"]]) == sorted(ALL_WORKFLOWS)
    for name in ALL_WORKFLOWS:
        folder = f"/api/workflow_templates/{PROJECT['name']}"
        assert installed.get(f"{folder}/{name}.json")["nodes"]
        with Image.open(io.BytesIO(fetch(installed, f"{folder}/{name}.jpg"))) as thumbnail:
            assert thumbnail.format == "JPEG"


def test_it_makes_a_sweep(installed: ComfyServer) -> None:
    prompt = api_workflow("flexip_gamma_sweep")
    prompt[node_of(prompt, "KSampler")]["inputs"]["steps"] = 2
    client = ComfyClient(installed.url)
    result = client.run(prompt)
    assert result.status == "success", result.error
    shown = [key for key, node in prompt.items() if node["class_type"] in ("SaveImage", "PreviewImage")]
    pictures = [Image.open(io.BytesIO(file)) for key in shown for file in client.pictures(result, key)]
    assert len(pictures) > 5, "five γ and the grid"
    for picture in pictures:
        assert min(ImageStat.Stat(picture.convert("RGB")).stddev) > 5, "a flat picture"


def test_mistakes_with_gamma_do_not_end_the_queue_of_a_windows_console(installed: ComfyServer) -> None:
    prompt = api_workflow("flexip_gamma_sweep")
    prompt[node_of(prompt, "KSampler")]["inputs"]["steps"] = 2
    wrong = copy.deepcopy(prompt)
    wrong[node_of(wrong, "FlexIPGammaSweep")]["inputs"]["gammas"] = "0:2:0.5"
    client = ComfyClient(installed.url)
    for asked, status in ((wrong, "error"), (prompt, "success")):
        found: list[RunResult] = []
        waiting = threading.Thread(target=lambda: found.append(client.run(asked)), daemon=True)  # noqa: B023
        waiting.start()
        waiting.join(120)
        assert [result.status for result in found] == [status], "the queue has stopped"
    log = installed.log.read_text(encoding="cp1252")
    assert r"\u03b3" in log
    assert "UnicodeEncodeError" not in log


@pytest.mark.parametrize("arguments", [("inspect", "models/demo/flexip_demo.safetensors"), ("train", "--help")])
def test_its_command_line_works(installed: ComfyServer, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "flexip_model", *arguments]
    folder = installed.base / "custom_nodes" / PROJECT["name"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout
