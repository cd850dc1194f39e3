"""Which part of a frame is the target: one function for `data cache` and for training without a cache."""

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


def region(
    width: int, height: int, box: Sequence[float] | None = None, shape: tuple[int, int] = (1, 1)
) -> tuple[int, int, int, int]:
    """The largest part of a picture with a shape's proportions, in the middle, or as near to the subject's middle as
    the picture allows.

    The paper trains at 512 × 512 (App. B.1) and says nothing of cropping. The largest square keeps the scene that the
    caption tells of; a square in the middle would cut off a subject that stands at the side (our choice).

    Args:
        width, height: of the picture, pixels.
        box: of the subject, x0, y0, x1, y1 in pixels, or None; parts outside the picture do not count.
        shape: width and height of what it is for, in any unit.

    Returns:
        Left, top, width and height, whole pixels inside the picture.

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
    scale = min(width / shape[0], height / shape[1])
    w, h = (max(1, round(scale * side)) for side in shape)

    def start(middle: float, part: int, length: int) -> int:
        return min(max(round(middle - part / 2), 0), length - part)

    return start(x, w, width), start(y, h, height), w, h


def fit(picture: Image, size: tuple[int, int], box: Sequence[float] | None = None) -> Tensor:
    """A frame as the VAE takes it: `region`, resized to `size` by Lanczos in 8 bits; the same for every epoch.

    Args:
        picture: any mode; turned into RGB.
        size: W and H, pixels.
        box: see `region`.

    Returns:
        (3, H, W) float32 in [-1, 1].

    Raises:
        FlexIPError: as `region`.
    """
    import numpy as np
    from PIL import Image

    left, top, width, height = region(picture.width, picture.height, box, size)
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    fitted = rgb.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    return torch.from_numpy(np.asarray(fitted).astype(np.float32)).permute(2, 0, 1).div_(127.5).sub_(1)
