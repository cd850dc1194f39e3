"""Make the workflows' thumbnails and the README's sweep anew from what they really make.

`python -m flexip_model.tools.thumbnails`, with the ComfyUI in `COMFYUI_PATH` or the one that `run.py` unpacked

The template browser shows them about 250 pixels high and at most as wide, so the pictures of a sweep stand in two rows.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..comfyui.client import ComfyClient, Prompt
from ..comfyui.process import PACK, ComfyServer, find_comfyui, has_gpu
from ..common.errors import FlexIPError
from ..common.gammas import parse_gammas
from ..images.contact_sheet import draw_cells
from .sweep_demo import fill_graph, only, shown

if TYPE_CHECKING:
    from PIL import Image

EXAMPLES = PACK / "models" / "demo" / "examples"
README = (
    ("sheep.webp", "a 3d render of a sheep in a green meadow"),
    ("cupcake.webp", "a 3d render of a cupcake on a beach"),
    ("house.webp", "a 3d render of a penguin in the snow"),
    ("tomato.webp", "a 3d render of a bear on a plain blue background"),
)
"""Reference and prompt of each row of the README's picture, all at the workflow's seed. In the last two they disagree
on what is shown, so that the ends of the dial do."""


SD15 = (
    ("checkpoint", "Stable\nDiffusion 1.5"),
    ("encoders", "OpenCLIP\nViT-H/14\n\nDINOv2\nViT-L/14"),
    ("adapter", "trained by you,\nor an imported\nIP-Adapter"),
    ("size", "512 by 512"),
    ("result", "five pictures,\ngamma 0 to 1"),
)
"""What the workflow for SD1.5 needs and makes: words, since there are no public weights to make pictures with."""


SHEETS = {"flexip_attention_maps": "FlexIPAttentionMaps", "flexip_find_gamma": "FlexIPSweepGrid"}
"""Workflows whose thumbnail is what a node of theirs draws, and this node."""


def make(comfyui: Path) -> None:
    """Run the workflows that need no download and write all thumbnails; SD1.5's says what it needs.

    Raises:
        FlexIPError: a run failed.
    """
    from PIL import Image

    for_sd15: list[tuple[str, Image.Image | str]] = []
    for_readme: list[tuple[str, Image.Image | str]] = []
    with ComfyServer(comfyui, cpu=not has_gpu()) as server:
        client = ComfyClient(server.url)
        for name in ("flexip_gamma_sweep", "flexip_basic", *SHEETS):
            graph = json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
            result = client.run(graph)
            if result.status != "success":
                raise FlexIPError(f"{name}: {result.error}")
            if name in SHEETS:
                (file,) = client.pictures(result, shown(graph, SHEETS[name]))
                sheet = Image.open(io.BytesIO(file)).convert("RGB")
                sheet.thumbnail((640, 640))
                if name == "flexip_find_gamma":
                    (file,) = client.pictures(result, shown(graph, "FlexIPFindGamma"))
                    sheet = _with_found(sheet, graph, Image.open(io.BytesIO(file)))
                _save(sheet, PACK / "workflows" / f"{name}.jpg")
                continue
            files = client.pictures(result, shown(graph, "VAEDecode"))
            pictures = [Image.open(io.BytesIO(file)) for file in files]
            reference = Image.open(EXAMPLES / graph[only(graph, "FlexIPLoadDemo")]["inputs"]["example"])
            if name == "flexip_basic":
                gamma = graph[only(graph, "FlexIPApply")]["inputs"]["gamma"]
                labels = [f"gamma {gamma:g}"]
            else:
                text = graph[only(graph, "FlexIPGammaSweep")]["inputs"]["gammas"]
                labels = [f"gamma {gamma:g}" for gamma in parse_gammas(text)]
                for_sd15 = [("reference", reference), *SD15]
            cells = [("reference", reference), *zip(labels, pictures, strict=True)]
            _save(draw_cells(cells, 2 if name == "flexip_basic" else 3), PACK / "workflows" / f"{name}.jpg")
        graph = json.loads((PACK / "workflows" / "api" / "flexip_gamma_sweep.json").read_text(encoding="utf-8"))
        for example, prompt in README:
            graph[only(graph, "FlexIPLoadDemo")]["inputs"]["example"] = example
            fill_graph(graph, gammas="0:1:0.25", prompt=prompt, seed=None, picture=None)
            result = client.run(graph)
            if result.status != "success":
                raise FlexIPError(f"the README's picture: {result.error}")
            for_readme.append(("reference", Image.open(EXAMPLES / example)))
            files = client.pictures(result, shown(graph, "VAEDecode"))
            for gamma, file in zip(parse_gammas("0:1:0.25"), files, strict=True):
                for_readme.append((f"gamma {gamma:g}", Image.open(io.BytesIO(file))))
    (PACK / "docs" / "images").mkdir(parents=True, exist_ok=True)
    _save(draw_cells(for_readme, 6), PACK / "docs" / "images" / "sweep.jpg")
    _save(draw_cells(for_sd15, 3), PACK / "workflows" / "flexip_gamma_sweep_sd15.jpg")


def _with_found(sweep: Image.Image, graph: Prompt, found: Image.Image) -> Image.Image:
    """The sweep with its scores, and below it the reference beside the picture that was found."""
    from PIL import Image

    asked = graph[only(graph, "FlexIPFindGamma")]["inputs"]
    reference = Image.open(EXAMPLES / graph[only(graph, "FlexIPLoadDemo")]["inputs"]["example"])
    label = f"found for {asked['score']} {asked['target']:g}"
    below = draw_cells([("reference", reference), (label, found)], 2, (sweep.width - 18) // 2)
    whole = Image.new("RGB", (sweep.width, sweep.height + below.height), "white")
    whole.paste(sweep, (0, 0))
    whole.paste(below, (0, sweep.height))
    return whole


def _save(sheet: Image.Image, path: Path) -> None:
    sheet.save(path, quality=88)


if __name__ == "__main__":
    make(find_comfyui())
