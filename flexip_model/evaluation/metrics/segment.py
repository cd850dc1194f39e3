"""The subject alone: found by Grounding DINO from its noun, cut out by SAM (Grounded SAM, arXiv 2401.14159)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..loading import describe_processor, folder_hash, load_model, load_part

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 0.3
"""A box with a lower score is no detection: Grounded SAM's own default."""


class Segmenter:
    """Both models; `hashes` and `preparations` of pictures by role."""

    def __init__(self, detector: Path, sam: Path, device: torch.device) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, SamModel, SamProcessor

        self.detector = load_model(AutoModelForZeroShotObjectDetection, detector, device)
        self.words = load_part(AutoProcessor, detector)
        self.sam = load_model(SamModel, sam, device)
        self.boxes = load_part(SamProcessor, sam)
        self.hashes = {"detector": folder_hash(detector), "sam": folder_hash(sam)}
        self.preparations = {
            "detector": describe_processor(self.words.image_processor),
            "sam": describe_processor(self.boxes.image_processor),
        }

    def cut(self, picture: Image, noun: str) -> Image | None:
        """The subject on white, in a square around it; None where it is not found."""
        box = self.find(picture, noun)
        if box is None:
            return None
        mask = self.mask(picture, box)
        return cut_out(picture, mask) if mask.any() else None

    @torch.no_grad()
    def find(self, picture: Image, noun: str) -> tuple[float, float, float, float] | None:
        """The best box (left, top, right, bottom) in pixels; None where its score is below `LEAST`."""
        inputs = self.words(images=picture, text=f"{noun.lower().strip('. ')}.", return_tensors="pt")
        found = self.detector(**inputs.to(self.detector.device))
        scores = found.logits[0].float().sigmoid().amax(-1)
        best = int(scores.argmax())
        if float(scores[best]) < LEAST:
            return None
        x, y, width, height = found.pred_boxes[0, best].float().tolist()
        ends = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        sizes = (picture.width, picture.height) * 2
        left, top, right, bottom = (min(max(end, 0.0), 1.0) * size for end, size in zip(ends, sizes, strict=True))
        return (left, top, right, bottom) if right - left >= 1 and bottom - top >= 1 else None

    @torch.no_grad()
    def mask(self, picture: Image, box: tuple[float, float, float, float]) -> np.ndarray:
        """(H, W) bool: what in the box SAM takes for the subject."""
        inputs: Any = self.boxes(images=picture, input_boxes=[[list(box)]], return_tensors="pt")
        moved = {
            name: value.to(self.sam.device, torch.float32 if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
            if name in ("pixel_values", "input_boxes")
        }
        found = self.sam(**moved, multimask_output=False).pred_masks.cpu()
        masks = self.boxes.post_process_masks(found, inputs["original_sizes"], inputs["reshaped_input_sizes"])
        return np.asarray(masks[0][0, 0], bool)


def cut_out(picture: Image, mask: np.ndarray) -> Image:
    """What the mask (H, W) marks, on white, cropped to its box and padded to a square."""
    from PIL import Image as Pillow

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    pixels = np.where(mask[..., None], np.asarray(picture), 255)[top:bottom, left:right].astype(np.uint8)
    side = max(pixels.shape[:2])
    sheet = Pillow.new("RGB", (side, side), "white")
    sheet.paste(Pillow.fromarray(pixels), ((side - pixels.shape[1]) // 2, (side - pixels.shape[0]) // 2))
    return sheet
