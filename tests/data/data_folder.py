"""A small data folder of drawn pictures, for the tests of what reads one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from flexip_model.data.format import NewFrame, NewGroup, ShardWriter


def scene(seed: int, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """A smooth picture with one disc in it, and the disc's mask."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (5, 5, 3), np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).copy()
    y, x = np.mgrid[:height, :width]
    disc = (x - width * 0.55) ** 2 + (y - height * 0.5) ** 2 < (min(width, height) * 0.3) ** 2
    pixels[disc] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels), Image.fromarray((disc * 255).astype(np.uint8))


def encoded(picture: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


def write_folder(folder: Path, groups: int = 4, shard_bytes: int = 15_000, broken: int | None = None) -> Path:
    """Image groups with masks and video groups of three frames without, by turns; one frame's bytes may be broken."""
    with_captions = ("a disc",)
    writer = ShardWriter(folder, "drawn", "CC0", max_bytes=shard_bytes)
    number = 0
    for i in range(groups):
        frames = []
        for j in range(1 if i % 2 == 0 else 3):
            picture, mask = scene(100 * i + j, 150 + 10 * j, 130)
            data = encoded(picture, "JPEG")
            if number == broken:
                data = data[:40]
            box = (40.0, 20.0, 130.0, 110.0) if i == 1 else None
            frames.append(
                NewFrame(
                    data,
                    *picture.size,
                    1.0,
                    f"{number:016x}",
                    encoded(mask, "PNG") if i % 2 == 0 else None,
                    None if i % 2 == 0 else j * 2.0,
                    box=box,
                    captions=with_captions if i == 0 else (),
                )
            )
            number += 1
        writer.add(NewGroup(f"g{i}", "image" if i % 2 == 0 else "video", tuple(frames)))
    writer.close()
    return folder
