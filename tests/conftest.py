"""The tests' way in: `flexip_model` by itself, and a real ComfyUI with this pack loaded as ComfyUI loads it.

The repository's root must not be on `sys.path`: its `nodes/` would shadow ComfyUI's `nodes.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = "flexip_pack"


def _load_package(name: str, folder: Path) -> ModuleType:
    """Import a package from its folder without the folder's parent on `sys.path`, as ComfyUI loads a pack."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
_load_package("flexip_model", ROOT / "flexip_model")

from .support.comfy_server import client, server  # noqa: E402, F401  # fixtures; they need flexip_model
from .support.editor import browser, editor  # noqa: E402, F401
from .support.encoder_files import clip_models, dino_model, whole_clip  # noqa: E402, F401
from .support.reliability import (  # noqa: E402, F401
    figures,
    planted,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_generate_tests,
)


@pytest.fixture(scope="session")
def comfy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base directory of the ComfyUI in this process: empty models, inputs and outputs."""
    return tmp_path_factory.mktemp("comfyui")


@pytest.fixture(scope="session")
def comfy(comfy_base: Path) -> ModuleType:
    """ComfyUI's own modules, imported from `COMFYUI_PATH` for the CPU; returns the package `comfy`."""
    found = os.environ.get("COMFYUI_PATH")
    if not found or not (Path(found) / "comfy").is_dir():
        pytest.fail("COMFYUI_PATH does not name a ComfyUI; `python run.py test` gets one and sets it", pytrace=False)
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(comfy_base)]
    level = logging.getLogger().level
    sys.path.insert(0, found)
    try:
        options = importlib.import_module("comfy.options")
        options.enable_args_parsing()
        importlib.import_module("comfy.cli_args")
        options.enable_args_parsing(False)
        importlib.import_module("comfy.sd")
        nodes = importlib.import_module("nodes")
        assert Path(nodes.__file__).resolve().parent == Path(found).resolve()
    finally:
        sys.argv = arguments
        logging.getLogger().setLevel(level)
    return importlib.import_module("comfy")


@pytest.fixture(scope="session")
def pack(comfy: ModuleType) -> ModuleType:
    """This pack, loaded as ComfyUI loads a folder of `custom_nodes`; its modules are `flexip_pack.nodes.…`."""
    return _load_package(PACK, ROOT)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny system in the layout of `models/demo`, random weights."""
    from .support.tiny_system import write_system

    return write_system(tmp_path_factory.mktemp("tiny") / "demo")


@pytest.fixture
def nodes(pack: ModuleType) -> dict[str, type]:
    """The pack's nodes by id."""
    return pack.NODE_CLASS_MAPPINGS


@pytest.fixture
def demo(pack: ModuleType, nodes: dict[str, type], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The parts that Load FlexIP Demo Model gives, from the tiny system."""
    import torch

    monkeypatch.setattr(importlib.import_module(f"{pack.__name__}.nodes.demo"), "FOLDER", tiny_folder)
    with torch.inference_mode():
        return nodes["FlexIPLoadDemo"].execute("gradient.png").args


@pytest.fixture(scope="session")
def rig(pack: ModuleType, tiny_folder: Path):
    """The tiny system inside ComfyUI; its parts are never changed by a test."""
    from .support.comfy_rig import Rig

    return Rig(pack, tiny_folder)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for the tiny models: waiting for a second one can take twenty times as long as their numbers, and
    sums over other numbers of threads differ in their last bits."""
    import torch

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # of the processes that tests start
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_false_alarm(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """FlexIP says that it did not act as the graph says in the tests that are marked `idle`, and in no other."""
    servers = [request.getfixturevalue(name) for name in ("server", "fresh") if name in request.fixturenames]
    before = [running.log.stat().st_size for running in servers]
    yield
    if request.node.get_closest_marker("idle") is None:
        alarms = ("FlexIP did not act", "FlexIP acted on another text")
        told = [record.message for record in caplog.get_records("call")]
        told += [
            running.log.read_bytes()[at:].decode(errors="replace") for running, at in zip(servers, before, strict=True)
        ]
        assert not [message for message in told if any(alarm in message for alarm in alarms)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of drawn subjects to train on."""
    from .support.train_rig import pack

    return pack(tmp_path_factory.mktemp("data"))
