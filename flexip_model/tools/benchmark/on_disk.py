"""What a machine without the full-size weights can measure of data: loading, index, caches, the order of samples."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from safetensors import safe_open

from ...data.cache.manifest import list_caches
from ...data.format import SCHEMA, Dataset, Frame, Group
from ...data.format.parts import write_index
from ...data.pack.packing import PackTask, pack
from ...train.configs.read import load_config
from ...train.frozen import Frozen, load_frozen
from ...train.samples.sample_set import open_samples
from ..example_data import cache, grained, write_data

FRAMES_IN_A_VARIANT = 4
"""Frames of a video's shot that `data pack` keeps by default."""
PHOTO = (2250, 1500)
"""Pixels of the pictures that are packed: SA-1B's, most of the paper's image groups (Table 3)."""
VIDEO = (1280, 720, 5, 24)
"""Width, height, seconds and frames a second of the videos that are packed; assumed."""


@dataclass(frozen=True)
class OnDisk:
    """Measured on this machine; seconds are of processor time, so that a busy machine gives the same.

    Attributes:
        loader: samples per second of one process without caches, its files in memory and a core to itself.
        passes: kind of cache → how often its network sees one frame that has a mask.
        header: bytes that a cache file adds to a tensor's own, per tensor.
        parquet, arrow: index bytes per image group of one frame; the Arrow file is what training maps.
        variant_parquet, variant_arrow: the same of a group of four frames.
        permutation: seconds to draw an epoch's order of 12 M groups.
        pack_picture: seconds to pack an image group, a JPEG of `PHOTO` pixels.
        pack_video: seconds to pack a video group, an H.264 file of `VIDEO`.
    """

    loader: float
    passes: dict[str, int]
    header: float
    parquet: float
    arrow: float
    variant_parquet: float
    variant_arrow: float
    permutation: float
    pack_picture: float
    pack_video: float


def measure_disk(
    folder: Path, full: Frozen, *, size: int = 512, samples: int = 64, rows: int = 20_000, groups: int = 12_000_000
) -> OnDisk:
    """Measure in an empty folder; `full` is `arithmetic.full_size`'s, whose sizes the loader serves."""
    passes, header = _cached(folder / "small")
    image, variant = (_index(folder / kind, kind, rows) for kind in ("image", "multiview"))
    started = time.process_time()
    np.random.default_rng(0).permutation(groups)
    seconds = time.process_time() - started
    packing = _packing(folder / "sources")
    return OnDisk(_loader(folder / "large", full, size, samples), passes, header, *image, *variant, seconds, *packing)


def _packing(folder: Path, pictures: int = 16, videos: int = 4) -> tuple[float, float]:
    """Seconds of `data pack` for a picture and for a video of the usual sizes."""
    width, height, seconds, rate = VIDEO
    for number in range(max(pictures, videos)):
        rng = np.random.default_rng((3, number))
        if number < pictures:
            picture = grained(PHOTO, rng)
            (folder / "pictures").mkdir(parents=True, exist_ok=True)
            picture.save(folder / "pictures" / f"{number}.jpg", quality=90)
        if number < videos:
            (folder / "videos").mkdir(parents=True, exist_ok=True)
            _write_video(folder / "videos" / f"{number}.mp4", grained((width * 2, height), rng), seconds * rate, rate)
    found = []
    for layout, count in (("pictures", pictures), ("videos", videos)):
        task = PackTask(layout, folder / layout, folder / "packed", layout, license="Apache-2.0", broken=0.0)
        started = time.process_time()
        pack(task)
        found.append((time.process_time() - started) / count)
    return found[0], found[1]


def _write_video(path: Path, scene: Image.Image, frames: int, rate: int) -> None:
    """A camera that moves over a scene, from its left half to its right."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        assert isinstance(stream, av.VideoStream)
        width = scene.width // 2
        stream.width, stream.height, stream.pix_fmt = width, scene.height, "yuv420p"
        for number in range(frames):
            left = round(number / frames * width)
            view = scene.crop((left, 0, left + width, scene.height))
            container.mux(stream.encode(av.VideoFrame.from_image(view)))
        container.mux(stream.encode(None))


def _loader(folder: Path, full: Frozen, size: int, samples: int) -> float:
    write_data(folder, size, images=16, variants=8)
    config = load_config("paper", {"data": [str(folder)], "use_cache": False, "size": size})
    demo = load_frozen(load_config("demo"))
    whole = replace(full, tokenizer=demo.tokenizer, scheduler=demo.scheduler)
    made = open_samples(config, whole, 0, 1)
    tickets = [t for step in range(-(-samples // config.batch) + 1) for t in made.sampler.tickets(step, 0)]
    for ticket in tickets[: config.batch]:
        made[ticket]
    started = time.process_time()
    for ticket in tickets[config.batch :]:
        made[ticket]
    return (len(tickets) - config.batch) / (time.process_time() - started)


def _cached(folder: Path) -> tuple[dict[str, int], float]:
    """What `data cache` writes of one frame with a mask, by the demo model; the sizes do not change the number."""
    write_data(folder, 128, images=2, variants=0)
    # Mirrored references too: the most that a frame can have.
    config = load_config(
        "demo",
        {
            "data": [str(folder)],
            "precision": "fp32",
            "start": None,
            "references": {"crop": "center", "flip_variant": 0.5},
        },
    )
    cache(config, dino=True)
    passes: Counter[str] = Counter()
    extra = tensors = 0
    for key, manifest in list_caches(folder).items():
        for path in (folder / "caches" / key).glob("*.safetensors"):
            with safe_open(str(path), framework="np") as file:
                names = list(file.keys())
                extra += path.stat().st_size - sum(file.get_tensor(name).nbytes for name in names)
            tensors += len(names)
            passes[manifest.kind] += sum(not name.endswith("-keep") for name in names)
    return {kind: number // 2 for kind, number in passes.items()}, extra / tensors


def _index(folder: Path, kind: str, rows: int) -> tuple[float, float]:
    """Bytes per group in the Parquet file and in the Arrow file."""
    count = 1 if kind == "image" else FRAMES_IN_A_VARIANT
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + letter) for letter in rng.integers(26, size=rng.integers(2, 9))) for _ in range(2000)]
    keys = ("latents-679ec0821809", "clip-0b9ccc7b7d15")

    def frame(number: int, place: int) -> Frame:
        offset, size, mask_offset, mask_size = (int(value) for value in rng.integers(1 << 17, size=4))
        return Frame(
            f"{kind}-{number:06}-{place:05}-{rng.bytes(4).hex()}",
            f"{kind}-{number // 1000:06}.tar",
            offset,
            size,
            mask_offset,
            mask_size,
            853,
            640,
            None,
            "any",
            (12.0, 40.5, 300.0, 512.0),
            (" ".join(rng.choice(words, 15)),),
            float(rng.uniform(0, 900)),
            rng.bytes(32).hex(),
            rng.bytes(8).hex(),
            keys,
        )

    def group(number: int) -> Group:
        frames = tuple(frame(number, place) for place in range(count))
        return Group(f"{kind}-{rng.bytes(8).hex()}", kind, kind, "base", "CC0", "train", frames)

    write_data(folder, 64, images=1, variants=0)
    path = folder / "index" / "examples.parquet"
    write_index(
        path,
        (
            pa.RecordBatch.from_pylist([group(first + i).to_row() for i in range(min(1000, rows - first))], SCHEMA)
            for first in range(0, rows, 1000)
        ),
    )
    Dataset.open(folder)
    return path.stat().st_size / rows, path.with_suffix(".arrow").stat().st_size / rows
