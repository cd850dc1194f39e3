"""Which square of a frame is the target: one function for `data cache` and for training without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..common.errors import FlexIPError

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1
"""The version of the rule below, part of every latent cache's key: a change of the rule makes old caches stale."""


def region(width: int, height: int, box: Sequence[float] | None = None) -> tuple[int, int, int]:
    """The largest square of a picture, in the middle, or as near to the subject's middle as the picture allows.

    The paper trains at 512 × 512 (App. B.1) and says nothing of cropping. The largest square keeps the scene that the
    caption tells of; a square in the middle would cut off a subject that stands at the side (our choice).

    Args:
        width, height: of the picture, pixels.
        box: of the subject, x0, y0, x1, y1 in pixels, or None; parts outside the picture do not count.

    Returns:
        Left, top and side of the square, whole pixels inside the picture.

    Raises:
        FlexIPError: the picture is empty, or the box is not four finite numbers in order.
    """
    if width < 1 or height < 1:
        raise FlexIPError(f"the picture is empty (size {width}×{height}); expected at least one pixel")
    x, y = width / 2, height / 2
    if box is not None:
        if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
            raise FlexIPError(f"the subject's box is {list(box)}; expected x0 < x1 and y0 < y1 in pixels")
        left, right = (min(max(v, 0), width) for v in (box[0], box[2]))
        top, bottom = (min(max(v, 0), height) for v in (box[1], box[3]))
        x, y = (left + right) / 2, (top + bottom) / 2
    side = min(width, height)

    def start(middle: float, length: int) -> int:
        return min(max(round(middle - side / 2), 0), length - side)

    return start(x, width), start(y, height), side


def square(picture: Image, size: int, box: Sequence[float] | None = None) -> Tensor:
    """A frame as the VAE takes it: `region`, resized to `size` by Lanczos in 8 bits; the same for every epoch.

    Args:
        picture: any mode; turned into RGB.
        size: S, pixels.
        box: see `region`.

    Returns:
        (3, S, S) float32 in [-1, 1].

    Raises:
        FlexIPError: as `region`.
    """
    import numpy as np
    from PIL import Image

    left, top, side = region(picture.width, picture.height, box)
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    fitted = rgb.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(fitted).astype(np.float32)).permute(2, 0, 1).div_(127.5).sub_(1)
