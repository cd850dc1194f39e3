"""`run.py demo`: the workflow that ships, with the user's picture, prompt, γ and seed, into a folder."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from ..comfyui.client import ComfyClient, Message, Prompt
from ..comfyui.process import PACK, ComfyServer, has_gpu
from ..common.errors import FlexIPError
from ..common.gammas import parse_gammas
from ..images.pictures import on_white

WORKFLOW = PACK / "workflows" / "api" / "flexip_gamma_sweep.json"


def run_demo(
    comfyui: Path,
    out: Path,
    *,
    gammas: str,
    reference: Path | None = None,
    prompt: str | None = None,
    seed: int | None = None,
    cpu: bool = False,
) -> list[Path]:
    """Make the sweep; prints its progress.

    Args:
        comfyui: ComfyUI's folder.
        out: where the pictures go: `sweep.png`, and `gamma_0.25.png` for each γ.
        gammas: as `parse_gammas` reads it.
        reference, prompt, seed: None keeps the workflow's own.
        cpu: do not use a GPU.

    Returns:
        The files written, the sweep first.

    Raises:
        FlexIPError: the reference is not a picture; the server or the workflow failed.
    """
    began = time.monotonic()
    values = parse_gammas(gammas)
    if reference is not None:
        check_picture(reference)
    print("Starting ComfyUI ...", flush=True)
    with ComfyServer(comfyui, cpu=cpu or not has_gpu()) as server:
        client = ComfyClient(server.url)
        graph: Prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
        if reference is not None:
            save_upright(reference, server.base / "input" / "reference.png")
        fill_graph(graph, gammas=gammas, prompt=prompt, seed=seed, picture="reference.png" if reference else None)
        result = client.run(graph, SamplerProgress(graph))
        if result.status != "success":
            raise FlexIPError(result.error or "the run was interrupted from another client")
        grid = client.pictures(result, shown(graph, "FlexIPSweepGrid"))
        singles = client.pictures(result, shown(graph, "VAEDecode"))
    files = {out / "sweep.png": grid[0]}
    files |= {
        out / f"gamma_{f'{gamma:.6f}'.rstrip('0').ljust(4, '0')}.png": single
        for gamma, single in zip(values, singles, strict=True)
    }
    for path, data in files.items():
        path.write_bytes(data)
    print(f"Done in {time.monotonic() - began:.0f} s.")
    return list(files)


def check_picture(path: Path) -> None:
    """Raise FlexIPError unless the file is a whole picture."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise FlexIPError(f"{path} is not a picture that can be read; expected a PNG, JPEG or WebP file") from error


def fill_graph(graph: Prompt, *, gammas: str, prompt: str | None, seed: int | None, picture: str | None) -> None:
    """Write the user's values into the workflow, which is changed; None leaves what is there.

    The nodes are found by what they are and by their wires, so that the workflow may be edited.
    """
    encode = graph[only(graph, "FlexIPEncodeReference")]["inputs"]
    graph[only(graph, "FlexIPGammaSweep")]["inputs"]["gammas"] = gammas
    if prompt is not None:
        graph[encode["positive"][0]]["inputs"]["text"] = prompt
    if seed is not None:
        graph[only(graph, "KSampler")]["inputs"]["seed"] = seed
    if picture is not None:
        graph["reference"] = {"class_type": "LoadImage", "inputs": {"image": picture}, "_meta": {"title": "Load Image"}}
        old = encode["image"]
        for node in graph.values():
            for name, value in node["inputs"].items():
                if value == old:
                    node["inputs"][name] = ["reference", 0]


class SamplerProgress:
    """Prints which node runs and how far the sampler is, on one line where stdout is a terminal."""

    def __init__(self, graph: Prompt) -> None:
        self._graph = graph
        self._title = ""

    def __call__(self, message: Message) -> None:
        """Take one message of the websocket."""
        data: dict[str, Any] = message["data"]
        if message["type"] == "executing" and data.get("node"):
            node = self._graph[data["node"]]
            self._title = node.get("_meta", {}).get("title") or node["class_type"]
            self._print(self._title)
        elif message["type"] == "progress" and (sys.stdout.isatty() or data["value"] == data["max"]):
            self._print(f"{self._title}: {data['value']:.0f} of {data['max']:.0f}")
        elif message["type"] == "execution_success" and sys.stdout.isatty():
            print()

    def _print(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if sys.stdout.isatty() else text, end="" if sys.stdout.isatty() else "\n", flush=True)


def save_upright(source: Path, target: Path) -> None:
    """Write the picture as a PNG, turned as its camera says and on white: LoadImage drops transparency."""
    from PIL import Image, ImageOps

    with Image.open(source) as image:
        on_white(ImageOps.exif_transpose(image)).save(target)


def only(graph: Prompt, kind: str) -> str:
    """Id of the first node of a kind."""
    return next(node for node, content in graph.items() if content["class_type"] == kind)


def shown(graph: Prompt, source: str) -> str:
    """Id of the SaveImage or PreviewImage that shows what a node of this kind makes."""
    shows = ("SaveImage", "PreviewImage")
    return next(
        node
        for node, content in graph.items()
        if content["class_type"] in shows and content["inputs"]["images"][0] == only(graph, source)
    )
