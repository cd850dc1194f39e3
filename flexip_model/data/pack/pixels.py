"""Turn a picture of any kind into what a shard holds: encoded bytes, mask, box, sharpness and hashes."""

from __future__ import annotations

import hashlib
import io
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ...images.pictures import on_white
from ..format.schema import NewFrame

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a damaged or hostile file."""
SHARPNESS_SIDE = 256
SMALL_SIDE = 32
QUALITY = 95
MARKED = 128
"""A mask's value from which on a pixel is the subject's, as `images.preprocess` counts it."""
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Ref:
    """Bytes of a source: a file, or a part of a tar that is read in place and never unpacked.

    Attributes:
        path: the file or the tar.
        offset, size: the part; size None is the whole file.
        name: the member's name inside the tar, for messages alone.
    """

    path: Path
    offset: int = 0
    size: int | None = None
    name: str = ""

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read(-1 if self.size is None else self.size)
        if self.size is not None and len(content) != self.size:
            raise OSError(f"{self} is cut off")
        return content

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)


@dataclass(frozen=True)
class RawFrame:
    """A frame as a layout gives it.

    Attributes:
        picture: where it is, or the decoded picture itself (a video's frame).
        mask: where it is (gray, or the alpha channel of an RGBA picture) or the mask itself ("L", 255 is the
            subject); None takes the alpha channel of `picture` when it has one.
        box: x0, y0, x1, y1 in pixels of `picture`; None takes the mask's.
        name: for messages, where `picture` has no place of its own.
        The other attributes are those of `schema.Frame`.
    """

    picture: Ref | Image.Image
    mask: Ref | Image.Image | None = None
    _: KW_ONLY
    time: float | None = None
    role: str = "any"
    box: tuple[float, float, float, float] | None = None
    captions: tuple[str, ...] = ()
    name: str = ""

    def __str__(self) -> str:
        return str(self.picture) if isinstance(self.picture, Ref) else self.name


class MadeFrame(NamedTuple):
    """A frame ready for a shard.

    Attributes:
        frame: what is stored.
        source: the SHA-256 of the source's bytes (None for a video's frame).
        remark: what was left out of it and why, or "".
    """

    frame: NewFrame
    source: str | None
    remark: str


def make_frame(raw: RawFrame, short_side: int) -> MadeFrame:
    """Decode and check a frame, and encode it anew where that is needed.

    A JPEG or 8-bit RGB PNG that is upright and small enough keeps its bytes. Everything else is put over white where it
    is transparent and becomes a JPEG of quality 95 without chroma subsampling; a PNG that keeps its size stays a PNG.

    Args:
        short_side: the shorter side is at most this many pixels.

    A mask that marks nothing is left out, as nothing could be shown by it.

    Raises:
        One of `UNREADABLE`; also a picture that is wholly transparent.
    """
    content = raw.picture.read() if isinstance(raw.picture, Ref) else None
    source = Image.open(io.BytesIO(content)) if content is not None else raw.picture
    assert isinstance(source, Image.Image)
    kind = source.format
    upright = source.getexif().get(ORIENTATION, 1) == 1
    source.load()
    verbatim = content is not None and upright and source.mode == "RGB" and kind in ("JPEG", "PNG")
    picture, alpha = flatten(ImageOps.exif_transpose(source))
    if alpha is not None and highest(alpha) < MARKED:
        raise ValueError("it is transparent all over, so nothing of it would be seen")
    mask = alpha if raw.mask is None else read_mask(raw.mask)
    full = picture.size
    if mask is not None and mask.size != full:
        if abs(mask.width * full[1] - mask.height * full[0]) > 0.02 * mask.height * full[0]:
            raise ValueError(f"the mask has {mask.width} × {mask.height} pixels, the picture {full[0]} × {full[1]}")
        mask = mask.resize(full, Image.Resampling.BILINEAR)
    box = raw.box if raw.box is not None or mask is None else box_of(mask)
    if min(full) > short_side:
        verbatim, kind = False, "JPEG"
        scale = short_side / min(full)
        width, height = (max(1, round(side * scale)) for side in full)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        mask = None if mask is None else mask.resize(picture.size, Image.Resampling.BOX)
        if box is not None:
            box = (
                box[0] * width / full[0],
                box[1] * height / full[1],
                box[2] * width / full[0],
                box[3] * height / full[1],
            )
    remark = ""
    if mask is not None and highest(mask) < MARKED:
        remark = f"its mask marks nothing (the highest value is {highest(mask)} of 255; white is the subject)"
        mask, box = None, raw.box and box
    encoded = content if verbatim and content is not None else encode(picture, kind or "JPEG")
    gray = picture.convert("L")
    frame = NewFrame(
        encoded,
        picture.width,
        picture.height,
        sharpness(gray),
        f"{dhash(gray):016x}",
        mask=None if mask is None else encode(mask, "PNG"),
        time=raw.time,
        role=raw.role,
        box=clip(box, picture.size),
        captions=tuple(text for text in (caption.strip() for caption in raw.captions) if text),
    )
    return MadeFrame(frame, None if content is None else hashlib.sha256(content).hexdigest(), remark)


def flatten(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """RGB over white, and the alpha channel where anything is transparent."""
    if picture.mode.startswith("I"):  # 16 bit, which Pillow would clip instead of scale
        return Image.fromarray((np.asarray(picture, np.float32) / 257).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        ), None
    if not picture.has_transparency_data:
        return picture.convert("RGB"), None
    rgba = picture.convert("RGBA")
    alpha = rgba.getchannel("A")
    return on_white(rgba), alpha if int(np.asarray(alpha).min()) < 255 else None


def read_mask(source: Ref | Image.Image) -> Image.Image:
    """A mask as gray from 0 to 255, from a gray picture or from the alpha channel of one that has it.

    A mask of 0 and 1 is scaled, which some tools write; so is one of 16 bit or of numbers from 0 to 1.
    """
    if isinstance(source, Image.Image):
        return source
    picture = Image.open(io.BytesIO(source.read()))
    picture.load()
    if picture.mode in ("RGBA", "LA"):
        return picture.getchannel("A")
    if picture.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture, np.float32))
        most = float(values.max())
        scale = 255 if most <= 1 else 1 if most <= 255 else 1 / 257
        return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
    gray = picture.convert("L")
    return gray.point([0, *[255] * 255]) if highest(gray) == 1 else gray


def highest(gray: Image.Image) -> int:
    """The highest value of a gray picture."""
    return int(gray.getextrema()[1])  # type: ignore[arg-type]


def encode(picture: Image.Image, kind: str) -> bytes:
    """A picture file's bytes; whatever is not "PNG" becomes a JPEG."""
    file = io.BytesIO()
    if kind == "PNG":
        picture.save(file, "PNG")
    else:
        picture.save(file, "JPEG", quality=QUALITY, subsampling="4:4:4")
    return file.getvalue()


def box_of(mask: Image.Image) -> tuple[float, float, float, float] | None:
    """The smallest box around the mask's subject (`MARKED` and up), or None for an empty mask."""
    return mask.point([0] * MARKED + [255] * (256 - MARKED)).getbbox()


def clip(box: tuple[float, ...] | None, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """A box inside the picture, or None when nothing of it is."""
    if box is None:
        return None
    x0, y0, x1, y1 = (min(max(float(value), 0.0), float(side)) for value, side in zip(box, size * 2, strict=True))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def sharpness(gray: Image.Image) -> float:
    """Variance of the Laplacian (4 neighbors) of the 8-bit gray picture, longer side 256 px."""
    scale = SHARPNESS_SIDE / max(gray.size)
    small = gray.resize(
        (max(3, round(gray.width * scale)), max(3, round(gray.height * scale))), Image.Resampling.BILINEAR
    )
    return float(laplacian(np.asarray(small, np.float32)).var())


def laplacian(x: np.ndarray) -> np.ndarray:
    """The Laplacian with 4 neighbors of a gray picture: (H, W) to (H − 2, W − 2)."""
    return x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]


def dhash(gray: Image.Image) -> int:
    """The 64-bit difference hash: whether each of 8 × 8 cells is brighter than its left neighbor."""
    cells = np.asarray(gray.resize((9, 8), Image.Resampling.BOX), np.int16)
    return int("".join("1" if bit else "0" for bit in (cells[:, 1:] > cells[:, :-1]).ravel()), 2)


def thumbnail(picture: Image.Image) -> np.ndarray:
    """(32, 32, 3) uint8, whatever the shape of the picture: enough to tell a copy from another picture."""
    return np.asarray(picture.convert("RGB").resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BOX))


def sameness(a: np.ndarray, b: np.ndarray) -> float:
    """1 − mean absolute difference of two small RGB pictures; 1 is the same picture."""
    return 1.0 - float(np.abs(a.astype(np.float32) - b.astype(np.float32)).mean()) / 255
