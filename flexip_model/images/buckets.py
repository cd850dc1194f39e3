"""Sizes of one area for pictures of any proportions (aspect buckets), and which of them a picture goes to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.errors import FlexIPError

Size = tuple[int, int]
"""Width and height in pixels."""
AT_ONCE = 1 << 16
"""Pictures that are compared with all buckets at a time: a data set has millions of them."""


def bucket_sizes(size: int, step: int = 64, limit: float = 2.0) -> list[Size]:
    """The sizes of at most `size`² pixels whose sides are multiples of `step`: for each width the tallest, and all of
    them turned by a right angle. The paper trains on squares alone (App. B.1); this is what trainers of SD1.5 do
    (NovelAI, 2022).

    Args:
        size: side of the square, a multiple of `step`.
        step: pixels. 64 for SD1.5: 8 of its VAE times 8 of its UNet's three halvings.
        limit: longest over shortest side, at most.

    Returns:
        The square first, then by width.

    Raises:
        FlexIPError: `size` is no multiple of `step`, or `limit` is below 1.
    """
    if size < 1 or step < 1 or size % step:
        raise FlexIPError(f"the size is {size} px and buckets have a step of {step} px; expected a multiple of it")
    if not limit >= 1:
        raise FlexIPError(f"the limit of buckets is {limit}; expected longest over shortest side, 1 or more")
    wide = [(width, size * size // width // step * step) for width in range(size, size * size // step + 1, step)]
    wide = [(width, height) for width, height in wide if width <= limit * height]
    turned = [(height, width) for width, height in wide]
    return [(size, size), *sorted({*wide, *turned} - {(size, size)})]


def nearest(buckets: Sequence[Size], sizes: ArrayLike) -> NDArray[np.int64]:
    """The bucket that loses least of a picture: the nearest in the logarithm of width over height.

    Args:
        buckets: one or more.
        sizes: (N, 2), widths and heights of pictures, at least 1.

    Returns:
        (N,) places in `buckets`; of two that are as near, the first.
    """
    wanted, given = (
        np.log(wh[:, 0] / wh[:, 1]) for wh in (np.asarray(sizes, np.float64), np.asarray(buckets, np.float64))
    )
    found = np.zeros(len(wanted), np.int64)
    for start in range(0, len(wanted), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        found[part] = np.abs(wanted[part, None] - given).argmin(1)
    return found
