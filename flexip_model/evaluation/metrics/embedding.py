"""Pictures and prompts as unit vectors: CLIP and DINO from transformers' folders, or the pack's own encoder files.

A `.safetensors` file in the place of a folder is read as an encoder of the pack (`load_clip`, `load_dino`), the one
that an adapter was made for. It looks at pictures alone, and it is no independent judge: the adapter was trained with
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...common.errors import FlexIPError
from ...encoders import clip_vectors, dino_vectors, load_clip, load_dino, unit
from ...images.preprocess import prepare
from ..loading import describe_processor, folder_hash, load_model, load_part

if TYPE_CHECKING:
    from PIL.Image import Image


class Clip:
    """A CLIP.

    Attributes:
        name, hash: of the weights (`folder_hash`).
        preparation: what is done to a picture.
    """

    def __init__(self, place: Path, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        self.model: Any = None
        self.own: Any = None
        if place.is_file():
            self.own = load_clip(place).float().to(device)
            self.name, self.hash = f"{self.own.name} (the pack's encoder)", self.own.weights_hash
            self.preparation = _own_preparation(self.own)
            return
        self.model = load_model(CLIPModel, place, device)
        self.images = load_part(AutoImageProcessor, place)
        self.tokenizer = load_part(AutoTokenizer, place)
        self.name, self.hash = _identity(place)
        self.preparation = describe_processor(self.images)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image]) -> Tensor:
        """Unit vectors, (B, C) float32 on the CPU."""
        if self.own is not None:
            return clip_vectors(self.own, _own_input(self.own, pictures))
        pixels = self.images(images=list(pictures), return_tensors="pt")["pixel_values"]
        return unit(_features(self.model.get_image_features(pixels.to(self.model.device))))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, (B, C) float32 on the CPU.

        Raises:
            FlexIPError: this is an encoder of the pack, which reads no text.
        """
        if self.own is not None:
            raise FlexIPError(f"{self.name} reads no text; CLIP-T needs a whole CLIP in transformers' folder form")
        found = self.tokenizer(list(texts), padding=True, truncation=True, max_length=77, return_tensors="pt")
        found = {key: found[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
        return unit(_features(self.model.get_text_features(**found)))


class Dino:
    """A DINO of either version; attributes as `Clip`."""

    def __init__(self, place: Path, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.own: Any = None
        if place.is_file():
            self.own = load_dino(place).float().to(device)
            self.name, self.hash = f"{self.own.name} (the pack's encoder)", self.own.weights_hash
            self.preparation = f"{_own_preparation(self.own)}; the mean of the patch tokens in the place of [CLS]"
            return
        self.model: Any = load_model(AutoModel, place, device)
        self.images = load_part(AutoImageProcessor, place)
        self.name, self.hash = _identity(place)
        self.preparation = describe_processor(self.images)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image]) -> Tensor:
        """Unit vectors of the [CLS] after the final norm, (B, C) float32 on the CPU."""
        if self.own is not None:
            return dino_vectors(self.own, _own_input(self.own, pictures))
        pixels = self.images(images=list(pictures), return_tensors="pt")["pixel_values"]
        return unit(self.model(pixel_values=pixels.to(self.model.device)).last_hidden_state[:, 0])


def _identity(place: Path) -> tuple[str, str]:
    return place.resolve().name, folder_hash(place)


def _features(found: Any) -> Tensor:
    """The projected embedding, which transformers gives alone (4) or in an output (5)."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _own_preparation(encoder: Any) -> str:
    return f"as the adapter sees it: center square, {encoder.image_size} px, bicubic with antialias"


def _own_input(encoder: Any, pictures: Sequence[Image]) -> Tensor:
    return prepare(list(pictures), encoder.image_size).pixels
