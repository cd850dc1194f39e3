"""Fixtures around a real ComfyUI server: one per test session, with this pack and the model that ships."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexip_model.comfyui import ComfyClient, ComfyServer
from flexip_model.comfyui.client import Prompt

from .paths import ROOT

WORKFLOWS = ROOT / "workflows"
WITH_SHIPPED_MODEL = ("flexip_gamma_sweep", "flexip_basic", "flexip_attention_maps", "flexip_find_gamma")
ALL_WORKFLOWS = (*WITH_SHIPPED_MODEL, "flexip_gamma_sweep_sd15")


def comfyui_path() -> Path:
    """The ComfyUI that the tests run in."""
    found = os.environ.get("COMFYUI_PATH")
    if not found:
        pytest.fail("COMFYUI_PATH does not name a ComfyUI; `python run.py test` gets one and sets it", pytrace=False)
    return Path(found)


@pytest.fixture(scope="session")
def server() -> Iterator[ComfyServer]:
    """A running ComfyUI with this pack."""
    with ComfyServer(comfyui_path()) as running:
        yield running


@pytest.fixture
def client(server: ComfyServer) -> ComfyClient:
    """A client of the running ComfyUI."""
    return ComfyClient(server.url)


def api_workflow(name: str) -> Prompt:
    """A shipped workflow in API form."""
    prompt: Prompt = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    return copy.deepcopy(prompt)


def node_of(prompt: Prompt, kind: str) -> str:
    """Id of the one node of a kind."""
    (found,) = [node for node, content in prompt.items() if content["class_type"] == kind]
    return found
