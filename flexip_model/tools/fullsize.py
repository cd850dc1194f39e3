"""`run.py fullsize`: SD1.5, ViT-H/14, DINOv2-L/14 and the adapter at their real sizes, on the CPU, random weights."""

from __future__ import annotations

import io
import json
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ..comfyui.client import ComfyClient, Message, Prompt
from ..comfyui.process import PACK, ComfyServer
from ..common.errors import FlexIPError
from .random_weights import write_sd15

WORKFLOW = PACK / "workflows" / "api" / "flexip_gamma_sweep_sd15.json"
SIDE, STEPS, GAMMAS = 256, 2, "0, 0.5, 1"
MEMORY_LIMIT = 24.0
"""GB: the machine that the tests run on."""


@dataclass
class Segment:
    """One node's share: seconds, and the server's highest resident memory meanwhile in GB."""

    name: str
    seconds: float = 0.0
    peak: float = 0.0


class Meter:
    """Follows a run: time per node from the websocket, memory from the system, ten times a second."""

    def __init__(self, pid: int, graph: Prompt) -> None:
        import psutil

        self._process = psutil.Process(pid)
        self._graph = graph
        self._began = time.monotonic()
        self._over = threading.Event()
        self.segments = [Segment("start of the run")]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __call__(self, message: Message) -> None:
        """Take one message of the websocket."""
        if message["type"] == "executing" and message["data"].get("node"):
            self._close()
            self.segments.append(Segment(self._graph[message["data"]["node"]]["class_type"], peak=self._memory()))

    def stop(self) -> list[Segment]:
        """End the measurement; the segments."""
        self._close()
        self._over.set()
        self._thread.join()
        return self.segments

    def _close(self) -> None:
        now = time.monotonic()
        self.segments[-1].seconds = now - self._began
        self._began = now

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            segment = self.segments[-1]
            segment.peak = max(segment.peak, self._memory())

    def _memory(self) -> float:
        return float(self._process.memory_info().rss) / 1e9


def run_fullsize(comfyui: Path) -> list[Segment]:
    """Make the files, run the SD1.5 sweep, check its pictures, print time and peak memory of each segment.

    Returns:
        The segments, in order.

    Raises:
        FlexIPError: the run failed, the pictures are wrong, or memory rose above `MEMORY_LIMIT`.
    """
    print("Full sizes on RANDOM weights: this shows that everything fits and runs; the pictures are noise.", flush=True)
    with tempfile.TemporaryDirectory(prefix="flexip-fullsize-") as folder:
        base = Path(folder)
        began = time.monotonic()
        names = write_sd15(base / "models")
        size = sum(path.stat().st_size for path in base.rglob("*.safetensors")) / 1e9
        print(f"files written: {size:.1f} GB in {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        with ComfyServer(comfyui, base) as server:
            print(f"ComfyUI started in {time.monotonic() - began:.0f} s", flush=True)
            graph = _graph(names)
            meter = Meter(server.pid, graph)
            client = ComfyClient(server.url)
            result = client.run(graph, meter)
            segments = meter.stop()
            if result.status != "success":
                raise FlexIPError(f"{result.error}; the end of ComfyUI's log:\n{server.log_tail(40)}")
            singles = next(node for node, content in graph.items() if content["class_type"] == "PreviewImage")
            pictures = client.pictures(result, singles)
    _check(pictures)
    for segment in segments[1:]:
        print(f"{segment.name:<24} {segment.seconds:7.1f} s   peak memory {segment.peak:5.1f} GB", flush=True)
    peak = max(segment.peak for segment in segments)
    total = sum(segment.seconds for segment in segments)
    print(f"3 pictures of {SIDE}x{SIDE}, {STEPS} steps: {total:.0f} s, peak {peak:.1f} GB; the weights are RANDOM")
    if peak > MEMORY_LIMIT:
        raise FlexIPError(f"the peak of {peak:.1f} GB is above {MEMORY_LIMIT:.0f} GB")
    return segments


def _graph(names: dict[str, str]) -> Prompt:
    graph: Prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    small = {"width": SIDE, "height": SIDE, "steps": STEPS, "gammas": GAMMAS, **names}
    for content in graph.values():
        inputs = content["inputs"]
        inputs.update({key: small[key] for key, old in inputs.items() if key in small and not isinstance(old, list)})
    return graph


def _check(files: list[bytes]) -> None:
    from PIL import Image

    pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    if [picture.size for picture in pictures] != [(SIDE, SIDE)] * 3:
        raise FlexIPError(f"expected three pictures of {SIDE}x{SIDE}, got {[p.size for p in pictures]}")
    if any(picture.getcolors(1) for picture in pictures):
        raise FlexIPError("a picture is of one color: the model gave values that are not finite")
    if len({picture.tobytes() for picture in pictures}) != 3:
        raise FlexIPError("the pictures for different γ are equal")
