"""Read any picture that a user hands over, in strips, as float32 RGB with the weight of each pixel.

Letters: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..common.errors import FlexIPError

if TYPE_CHECKING:
    from PIL.Image import Image

Images: TypeAlias = "Tensor | Image | Sequence[Tensor | Image]"
Masks: TypeAlias = "Tensor | Sequence[Tensor] | str | None"

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Resizing nodes leave values a little outside [0, 1] (bicubic overshoot); these are clamped, more is an error.
OVERSHOOT = 0.25
# One channel of a strip is over 32 MiB, so that glibc maps it and gives it back; smaller pieces pile up on its heap.
STRIP_PIXELS = 9 * 1024 * 1024
ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Picture:
    """One picture, read by pieces so that the largest needs little memory.

    Attributes:
        height, width: pixels, after EXIF orientation.
        read: (top, bottom, left, right) → (3 or 4, bottom − top, right − left) float32 in [0, 1]; the fourth channel
            is straight alpha.
        has_alpha: whether `read` gives four channels.
    """

    height: int
    width: int
    read: Callable[[int, int, int, int], Tensor]
    has_alpha: bool

    def strips(self, top: int, bottom: int, left: int, right: int) -> Iterator[tuple[int, int, int, int]]:
        """The boxes that cover (top, bottom, left, right), at most `STRIP_PIXELS` pixels each (or one row)."""
        rows = max(1, STRIP_PIXELS // (right - left))
        for start in range(top, bottom, rows):
            yield start, min(start + rows, bottom), left, right


def on_white(picture: Image, size: tuple[int, int] | None = None, offset: tuple[int, int] = (0, 0)) -> Image:
    """A picture over white, in 8 bits.

    Args:
        picture: any 8-bit mode; what has no alpha covers the white.
        size: width and height of the white, pixels; None is the picture's own.
        offset: of the picture's left upper corner on the white.

    Returns:
        RGB of that size.
    """
    from PIL import Image

    white = Image.new("RGBA", size or picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"), offset)
    return white.convert("RGB")


def open_pictures(images: Images) -> list[Picture]:
    """Pictures in the order of the batch; a list may mix sizes, tensors and PIL images.

    Raises:
        FlexIPError: nothing in it, an unknown type, layout, dtype or range, NaN or infinite values, a damaged file.
    """
    items = list(images) if isinstance(images, (list, tuple)) else [images]
    pictures: list[Picture] = []
    for item in items:
        if isinstance(item, Tensor):
            pictures += _from_tensor(item)
        elif type(item).__module__.split(".")[0] == "PIL":
            pictures.append(_from_pil(item))
        else:
            raise FlexIPError(
                f"the picture is a {type(item).__name__}; expected a float tensor (batch, height, width, channels) "
                "or a PIL image"
            )
    if not pictures:
        raise FlexIPError("there is no picture in the batch; connect at least one")
    return pictures


def open_masks(masks: Tensor | Sequence[Tensor], pictures: Sequence[Picture]) -> list[Tensor]:
    """One (H, W) mask per picture, in the mask's own dtype; 1 is the subject, 0 the background.

    A mask of another size is stretched where its proportions fit the picture's, and where it is 1 everywhere; one mask
    serves a whole batch.

    Raises:
        FlexIPError: another number of masks than pictures, a wrong layout, dtype, range or proportion.
    """
    found: list[Tensor] = []
    for mask in masks if isinstance(masks, (list, tuple)) else [masks]:
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or 0 in mask.shape:
            shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise FlexIPError(f"the subject mask is {shape}; expected (batch, height, width) or (height, width)")
        if mask.dtype == torch.bool:
            mask = mask.half()
        _check_values(mask, "the subject mask")
        found += list(mask) if mask.ndim == 3 else [mask]
    if len(found) == 1:
        found *= len(pictures)
    if len(found) != len(pictures):
        raise FlexIPError(
            f"there are {len(found)} subject masks for {len(pictures)} pictures; give one mask, or one per picture"
        )
    return [_fit_mask(mask, picture) for mask, picture in zip(found, pictures, strict=True)]


def _fit_mask(mask: Tensor, picture: Picture) -> Tensor:
    height, width = mask.shape
    if (height, width) == (picture.height, picture.width):
        return mask
    low, high = float(mask.amin()), float(mask.amax())
    if low == high == 1:
        return mask.new_ones((picture.height, picture.width))
    if low == high == 0:
        raise FlexIPError(
            f"the subject mask is {width}×{height} and empty, the picture {picture.width}×{picture.height}: that is "
            "what Load Image gives for a picture without transparent parts; draw a mask, or disconnect it"
        )
    # Proportions agree when the mask, scaled to the picture's width, misses its height by a pixel of the coarser one.
    if abs(height * picture.width - width * picture.height) > max(picture.width, width, picture.height, height):
        raise FlexIPError(
            f"the subject mask is {width}×{height} and the picture {picture.width}×{picture.height}; "
            "draw the mask on the same picture"
        )
    size = (picture.height, picture.width)
    return torch.nn.functional.interpolate(mask[None, None].float(), size, mode="bilinear", antialias=True)[0, 0]


def _check_values(values: Tensor, what: str) -> None:
    """Refuse what is no picture in [0, 1]; `amin` and `amax` carry NaN along and copy nothing."""
    if values.dtype not in FLOATS:
        raise FlexIPError(f"{what} is {values.dtype}; expected floats from 0 to 1 (divide 8-bit values by 255)")
    low, high = float(values.detach().amin()), float(values.detach().amax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise FlexIPError(f"{what} holds NaN or infinite values; the node before it made a broken picture")
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        hint = "divide by 255" if high > 2 else "map −1..1 to 0..1" if low < -OVERSHOOT else "scale it to 0..1"
        raise FlexIPError(f"{what} has values from {low:.4g} to {high:.4g}; expected 0 to 1: {hint}")


def _from_tensor(images: Tensor) -> list[Picture]:
    shape = list(images.shape)
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        if images.ndim == 4 and images.shape[1] in (1, 3, 4):
            hint = "it looks like channels first: permute(0, 2, 3, 1)"
        elif images.ndim == 3:
            hint = "add the batch dimension: image[None]"
        else:
            hint = "channels are 1 (gray), 3 (RGB) or 4 (RGBA)"
        raise FlexIPError(f"the picture has shape {shape}; expected (batch, height, width, channels): {hint}")
    if 0 in shape:
        raise FlexIPError(f"the picture is empty (shape {shape}); expected at least one pixel")
    _check_values(images, "the picture")

    def reader(image: Tensor) -> Callable[[int, int, int, int], Tensor]:
        def read(top: int, bottom: int, left: int, right: int) -> Tensor:
            piece = image[top:bottom, left:right].detach().float().permute(2, 0, 1).clamp(0, 1)
            return piece.expand(3, -1, -1) if piece.shape[0] == 1 else piece

        return read

    return [Picture(shape[1], shape[2], reader(image), shape[3] == 4) for image in images]


def _from_pil(image: Any) -> Picture:
    from PIL import ImageOps

    if 0 in image.size:
        raise FlexIPError(f"the picture is empty (size {image.width}×{image.height}); expected at least one pixel")
    try:
        image.load()
        if image.getexif().get(ORIENTATION_TAG, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise FlexIPError(f"the picture cannot be read ({error}); the file is damaged, save it again") from error
    deep = image.mode.startswith("I") or image.mode == "F"
    has_alpha = not deep and (image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info)

    def read(top: int, bottom: int, left: int, right: int) -> Tensor:
        import numpy as np

        piece = image.crop((left, top, right, bottom))
        if deep:
            # 16-bit gray; Pillow opens it as I;16 or I. Floating TIFFs (F) are taken as they are.
            values = np.asarray(piece).astype(np.float32) / (1.0 if image.mode == "F" else 65535.0)
            gray = torch.from_numpy(values)
            _check_values(gray, f"the {image.mode} picture")
            return gray.clamp(0, 1).expand(3, -1, -1)
        values = np.asarray(piece.convert("RGBA" if has_alpha else "RGB"))
        return torch.from_numpy(values.astype(np.float32) / 255).permute(2, 0, 1)

    return Picture(image.height, image.width, read, has_alpha)
