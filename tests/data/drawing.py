"""Drawn pictures that differ, and videos with cuts: what the tests of `data pack` read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

from flexip_model.data.format import Dataset, Group

W, H = 160, 120


def picture(seed: int, size: tuple[int, int] = (W, H)) -> Image.Image:
    """A picture that no other seed comes near to: smooth colored noise with a disc on it."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
    array = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).copy()
    array[disc(size)] = random.integers(0, 256, 3)
    return Image.fromarray(array)


def disc(size: tuple[int, int] = (W, H), x: float = 0.5) -> np.ndarray:
    """(H, W) bool: a disc of a quarter of the shorter side, its center at `x` of the width."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    return (columns - x * size[0]) ** 2 + (rows - size[1] / 2) ** 2 < (min(size) / 4) ** 2


def mask_picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array.astype(np.uint8) * 255)


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def moving_disc(seed: int, frames: int, speed: float = 1.0) -> Iterator[np.ndarray]:
    """A disc that crosses a colored background, which moves the other way at half its speed."""
    random = np.random.default_rng(seed)
    back = np.kron(random.integers(40, 216, (H // 20, W // 20 + 4, 3)), np.ones((20, 20, 1)))
    color = random.integers(0, 256, 3)
    for i in range(frames):
        shift = int(i * speed) % 60
        frame = back[:, shift // 2 : shift // 2 + W].copy()
        frame[disc(x=0.2 + shift / 100)] = color
        yield frame.astype(np.uint8)


def save_video(path: Path, scenes: Iterable[Iterable[np.ndarray]], rate: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        for frames in scenes:
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


def pictures(source: Path, count: int, first: int = 0) -> Path:
    for i in range(first, first + count):
        save(picture(i, (320, 240)), source / f"{i:04}.jpg", quality=90)
    return source


def groups_of(data: Dataset) -> list[Group]:
    return [data.group(i) for i in range(len(data))]
