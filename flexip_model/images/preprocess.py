"""Pictures to encoder input: one function for the trainer and the nodes.

A square region of the picture is chosen once, from its size, its subject mask and the crop mode alone, so both encoders
see the same region whatever their sizes. Then: background to white, bicubic resize with antialias, no rounding to
8 bits.

Letters: B batch, S the encoder's picture size, M = (S / patch)² patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, TypeAlias, cast

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from ..common.errors import FlexIPError
from .crops import region
from .pictures import Images, Masks, Picture, open_masks, open_pictures

CROPS = ("center", "pad", "subject")
FOLLOW = "follow"
"""The crop mode that nobody chooses: what `center` is in training, see `reference_crop`."""
AS_TRAINED = "as trained"
"""Where a person chooses a crop: the one that the adapter's file records, see `trained_crop`."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Room around the subject in the crop mode "subject", a share of its longer side (our choice).
MARGIN = 0.2
# A patch counts where the subject covers a quarter of it: edges hold look details (our choice).
COVERAGE = 0.25
# A mask marks a subject where it is at least this.
MARKED = 0.5

Box: TypeAlias = tuple[int, int, int, int]


class Prepared(NamedTuple):
    """What an encoder sees, before its own mean and standard deviation.

    Attributes:
        pixels: (B, 3, S, S) float32 in [0, 1], background and padding white.
        subject: (B, S, S) float32 in [0, 1], how much of a pixel belongs to the subject; None when all does.
    """

    pixels: Tensor
    subject: Tensor | None

    def picture(self, index: int) -> Prepared:
        """One picture of the batch, B = 1."""
        return Prepared(
            self.pixels[index : index + 1], None if self.subject is None else self.subject[index : index + 1]
        )


class Region(NamedTuple):
    """A square of the picture in its own pixels; parts outside the picture are white."""

    top: int
    left: int
    side: int


def prepare(images: Images, size: int, mask: Masks = None, crop: str | Box = "center") -> Prepared:
    """Fit pictures to an encoder.

    Args:
        images: float tensor (B, H, W, C) in [0, 1] with C 1, 3 or 4 (fp16, bf16, fp32, fp64), a PIL image of any mode,
            or a list of these, sizes mixed. Alpha is composited on white, gray is repeated, EXIF orientation applied.
        size: S.
        mask: subject mask (B, H, W) or (H, W) in [0, 1], 1 on the subject; `"alpha"` takes the pictures' alpha. The
            background turns white and `Prepared.subject` tells where the subject is.
        crop: `center`: the largest square in the middle; `pad`: the whole picture, padded with white, the padding
            counted as background; `subject`: a square around the mask with a little room; `follow`: the largest square
            as near to the mask's middle as the picture allows (`crops.region`); or a box (left, top, right, bottom) in
            pixels of the picture, widened to a square.

    Returns:
        `Prepared`, on the tensors' own device. A mask of ones gives exactly what no mask gives.

    Raises:
        FlexIPError: see `pictures.open_pictures` and `pictures.open_masks`; a mask that marks nothing, or nothing in
            the region; a box outside the picture; an unknown crop.
    """
    if isinstance(crop, str) and crop not in (*CROPS, FOLLOW):
        raise FlexIPError(f"crop is {crop!r}; expected one of {', '.join(CROPS)}, or a box (left, top, right, bottom)")
    pictures = open_pictures(images)
    masks: Sequence[Tensor | None] = [None] * len(pictures)
    if isinstance(mask, str):
        if mask != "alpha" or not all(picture.has_alpha for picture in pictures):
            what = "the picture has no alpha channel" if mask == "alpha" else f"{mask!r} is not known"
            raise FlexIPError(f"the subject mask was to be taken from the alpha channel, but {what}; give a mask")
    elif mask is not None:
        masks = open_masks(mask, pictures)
    fitted = [_fit(p, m, masked=mask is not None, size=size, crop=crop) for p, m in zip(pictures, masks, strict=True)]
    pixels = torch.stack([rgb for rgb, _ in fitted])
    subject = torch.stack([weight for _, weight in fitted])
    return Prepared(pixels, None if bool((subject >= 1 - 1e-5).all()) else subject)


def reference_crop(crop: str, size: tuple[int, int], box: Sequence[float] | None, masked: bool) -> str | Box:
    """Which part of a frame training shows as a reference, from the config's `references.crop`.

    `center` follows the subject's box as targets do, so that a subject at the side is not cut off; without a mask
    `subject` is `pad`, as there is nothing to crop to (our choice).

    Args:
        crop: one of `CROPS`.
        size: of the frame, width and height.
        box: of the subject, x0, y0, x1, y1 in pixels, or None.
        masked: whether the frame is shown with its mask.
    """
    if crop == "center" and box is not None:
        left, top, side, _ = region(*size, box)
        return left, top, left + side, top + side
    return "pad" if crop == "subject" and not masked else crop


def trained_crop(recorded: str | None, masked: bool) -> str:
    """The crop mode of `prepare` that shows a picture as an adapter's references were shown in its training.

    Args:
        recorded: what the adapter's file says (`AdapterInfo.crop`); anything but one of `CROPS` counts as `center`, as
            the nodes took it before files said it.
        masked: whether there is a subject mask.
    """
    if recorded == "pad" or (recorded == "subject" and not masked):
        return "pad"
    if recorded == "subject":
        return "subject"
    return FOLLOW if recorded == "center" and masked else "center"


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, S, S) in [0, 1] → (pixels − mean) / std per channel, in the pixels' dtype."""
    middle, deviation = (_channels(tuple(values), pixels.device, pixels.dtype) for values in (mean, std))
    return (pixels - middle) / deviation


@cache
def _channels(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Values of channels, (C, 1, 1), made once for a device: a CUDA graph cannot be taken of a copy from the CPU."""
    with torch.inference_mode(False):  # else training could not use what a node made
        return torch.tensor(values, device=device, dtype=dtype)[:, None, None]


def keep_patches(subject: Tensor | None, patch: int) -> Tensor | None:
    """The patches that lie on the subject: (B, S, S) → (B, M) bool in row order; None (all) for None.

    A patch is kept where the subject covers a quarter of it; of a subject too thin for that, the patches that it covers
    most. So every sample keeps at least one.
    """
    if subject is None:
        return None
    cover = F.avg_pool2d(subject[:, None], patch).flatten(1)
    keep = cover >= cover.amax(1, keepdim=True).clamp(max=COVERAGE) * 0.999
    return None if bool(keep.all()) else keep


def preview(prepared: Prepared, patch: int) -> Tensor:
    """What the encoders see, for people: (B, S, S, 3) float32 in [0, 1] on the CPU; dropped patches are dimmed."""
    pixels = prepared.pixels
    keep = keep_patches(prepared.subject, patch)
    if keep is not None:
        side = pixels.shape[-1] // patch
        seen = repeat(keep, "b (h w) -> b 1 (h p) (w q)", h=side, p=patch, q=patch)
        pixels = torch.where(seen, pixels, pixels * 0.4 + 0.3)
    return pixels.permute(0, 2, 3, 1).cpu().contiguous()


def _fit(picture: Picture, mask: Tensor | None, *, masked: bool, size: int, crop: str | Box) -> tuple[Tensor, Tensor]:
    """One picture → (3, S, S) in [0, 1] and the subject's share (S, S)."""
    bounds = _subject_box(picture, mask) if masked else None
    region = _region(picture, bounds, crop)
    top, bottom = max(region.top, 0), min(region.top + region.side, picture.height)
    left, right = max(region.left, 0), min(region.left + region.side, picture.width)
    y, height = _place(top, bottom, start=region.top, side=region.side, size=size)
    x, width = _place(left, right, start=region.left, side=region.side, size=size)

    # Columns strip by strip, then rows: torch's own order, so the result is that of one call on the whole picture.
    columns, marked = torch.empty(0), 0.0
    for box in picture.strips(top, bottom, left, right):
        rgb, weight = _read(picture, mask, box)
        if masked:
            marked = max(marked, float(weight.max()))
            rgb = torch.cat([rgb, weight])
        if columns.numel() == 0:
            columns = rgb.new_empty(len(rgb), bottom - top, width)
        columns[:, box[0] - top : box[1] - top] = _resize(rgb, rgb.shape[1], width)
    if masked and marked < MARKED:
        raise FlexIPError(
            f"the subject lies outside the {crop if isinstance(crop, str) else 'box'} crop; "
            "use the crop mode subject or pad"
        )
    resized = _resize(columns, height, width).clamp(0, 1)
    pixels = resized.new_ones(3, size, size)
    subject = resized.new_zeros(size, size)
    pixels[:, y : y + height, x : x + width] = resized[:3]
    subject[y : y + height, x : x + width] = resized[3] if masked else 1
    return pixels, subject


def _read(picture: Picture, mask: Tensor | None, box: Box) -> tuple[Tensor, Tensor]:
    """(3, h, w) with the background white, and the subject's weight (1, h, w), of a box (top, bottom, left, right)."""
    pixels = picture.read(*box)
    rgb, weight = pixels[:3], pixels[3:] if picture.has_alpha else pixels.new_ones(1).expand(1, *pixels.shape[1:])
    if mask is None and not picture.has_alpha:
        return rgb, weight
    if mask is not None:
        top, bottom, left, right = box
        weight = weight * mask[top:bottom, left:right].to(weight).clamp(0, 1)
    return rgb * weight + (1 - weight), weight


def _resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """(C, h, w) → (C, height, width), bicubic with antialias."""
    return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]


def _place(low: int, high: int, *, start: int, side: int, size: int) -> tuple[int, int]:
    """Where [low, high) of a region's side lands in S pixels: offset and length, at least one pixel."""
    first = min(round((low - start) * size / side), size - 1)
    return first, max(round((high - start) * size / side) - first, 1)


def _subject_box(picture: Picture, mask: Tensor | None) -> Box:
    """(left, top, right, bottom) of what the mask marks."""
    rows, columns = [], torch.zeros(picture.width, dtype=torch.bool)
    highest = 0.0
    for box in picture.strips(0, picture.height, 0, picture.width):
        _, weight = _read(picture, mask, box)
        highest = max(highest, float(weight.max()))
        on = weight[0] >= MARKED
        rows.append(on.any(1).cpu())
        columns |= on.any(0).cpu()
    ys, xs = torch.cat(rows).nonzero().flatten(), columns.nonzero().flatten()
    if len(ys) == 0:
        raise FlexIPError(
            f"the subject mask marks nothing (its highest value is {highest:.3g}); expected 1 on the subject: "
            "draw it, or disconnect the mask"
        )
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _region(picture: Picture, bounds: Box | None, crop: str | Box) -> Region:
    height, width = picture.height, picture.width
    if crop == "center" or crop == "pad":
        side = min(height, width) if crop == "center" else max(height, width)
        return Region((height - side) // 2, (width - side) // 2, side)
    if crop == FOLLOW:
        left, top, side, _ = region(width, height, bounds)
        return Region(top, left, side)
    if crop == "subject":
        if bounds is None:
            raise FlexIPError("the crop mode subject needs a subject mask; give one, or use center or pad")
        left, top, right, bottom = bounds
        longer = max(right - left, bottom - top)
        side = max(longer, min(round(longer * (1 + MARGIN)), height, width))
    else:
        left, top, right, bottom = cast(Box, crop)
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise FlexIPError(
                f"the crop box {tuple(crop)} does not lie in the picture of {width}×{height}; "
                "expected left < right and top < bottom in its pixels"
            )
        side = max(right - left, bottom - top)

    def start(low: int, high: int, length: int) -> int:
        if side > length:
            return (length - side) // 2
        return min(max((low + high - side) // 2, 0), length - side)

    return Region(start(top, bottom, height), start(left, right, width), side)
