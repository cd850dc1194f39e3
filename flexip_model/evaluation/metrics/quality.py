"""How good a picture looks by itself: CLIP-IQA and LAION's aesthetic predictor."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.errors import FlexIPError
from ...encoders.weights import weights_hash
from ...files.safefile import load_tensors
from ...images.preprocess import CLIP_MEAN, CLIP_STD, normalize
from ..loading import ERRORS

if TYPE_CHECKING:
    from PIL.Image import Image

WORDS = ("Good photo.", "Bad photo.")
"""CLIP-IQA's own pair."""


class ClipIqa:
    """CLIP-IQA (arXiv 2207.12396): a ResNet CLIP whose pooling has no position table, so that pictures keep their size.

    open_clip's own class; pyiqa, which has the metric too, is not for commercial use, and torchmetrics has it for
    models that it downloads.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        import open_clip
        from open_clip.model import CLIP

        self.device = device
        try:
            config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
            model: Any = CLIP(**config)
            model.load_state_dict(load_tensors(folder / "open_clip_model.safetensors"))
            table = model.visual.attnpool.positional_embedding
        except ERRORS as error:
            raise FlexIPError(
                f"{folder} cannot be loaded as a ResNet CLIP of open_clip ({' '.join(str(error).split())[:300]})"
            ) from error
        self.hash = weights_hash(model.state_dict())
        self.preparation = "in its own size; CLIP's mean and deviation"
        model.visual.attnpool.positional_embedding = nn.Parameter(torch.zeros_like(table[:1]))
        self.model = model.float().to(device).eval().requires_grad_(False)
        with torch.no_grad():
            tokens = open_clip.SimpleTokenizer()(list(WORDS)).to(device)
            self.words = F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image]) -> list[float]:
        """The share of "Good photo." for each picture, in [0, 1]; one at a time, since sizes differ."""
        return [float(self._one(picture)) for picture in pictures]

    def _one(self, picture: Image) -> Tensor:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        features = self.model.encode_image(normalize(pixels, CLIP_MEAN, CLIP_STD).to(self.device)).float()
        return (100 * F.normalize(features, dim=-1) @ self.words.T).softmax(-1)[0, 0]


class AestheticPredictor:
    """The linear layers of LAION's predictor, on unit embeddings (B, C); its dropout does nothing when it judges."""

    def __init__(self, path: Path) -> None:
        tensors = load_tensors(path)
        found = {int(m[1]): key for key in tensors if (m := re.search(r"(?:^|\.)layers\.(\d+)\.weight$", key))}
        self.layers = [
            (tensors[key].float(), tensors[key.removesuffix("weight") + "bias"].float())
            for _, key in sorted(found.items())
            if key.removesuffix("weight") + "bias" in tensors
        ]
        if not self.layers or self.layers[-1][0].shape[0] != 1:
            raise FlexIPError(f"{path} has no layers.N.weight that end in one score; it is no aesthetic predictor")
        self.preparation = "the unit embedding of clip-l"
        self.hash = weights_hash({str(i): value for i, layer in enumerate(self.layers) for value in layer})

    def __call__(self, embeddings: Tensor) -> list[float]:
        for weight, bias in self.layers:
            if embeddings.shape[-1] != weight.shape[1]:
                raise FlexIPError(
                    f"the aesthetic predictor reads embeddings of {weight.shape[1]} and gets {embeddings.shape[-1]}; "
                    "give it the CLIP that it was made for (ViT-L/14)"
                )
            embeddings = F.linear(embeddings, weight, bias)
        return embeddings[:, 0].tolist()
