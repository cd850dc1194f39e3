"""Picture files as the metrics read them: RGB over white, upright; what cannot be read is told by a sentence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import FlexIPError

if TYPE_CHECKING:
    from PIL.Image import Image


def read_picture(path: Path) -> Image:
    """A whole picture file as RGB at its own size; transparent parts become white, EXIF's turn is applied.

    Raises:
        FlexIPError: it is missing, cut short, damaged or no picture.
    """
    from PIL import Image, ImageOps

    if not path.is_file():
        raise FlexIPError(f"{path} is missing")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                file.load()
                picture = ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise FlexIPError(f"{path} cannot be read ({' '.join(str(error).split())[:120]})") from error
    sheet = Image.new("RGBA", picture.size, "white")
    sheet.alpha_composite(picture)
    return sheet.convert("RGB")


def why_unreadable(path: Path) -> str:
    """Why a picture cannot be used; empty where it can."""
    try:
        read_picture(path)
    except FlexIPError as error:
        return str(error)
    return ""
