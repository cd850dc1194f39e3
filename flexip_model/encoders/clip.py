"""OpenCLIP ViT-H/14's visual tower (App. B.1): the [CLS] embedding Z^(C) (§3.2, Eq. 2; §3.3, Eq. 3), and hidden states
for imported adapters.

Letters: B batch, S picture size, M patches, W tower width, C embedding width.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..common.errors import FlexIPError
from ..files.identify import CLIP_WANTED, identify
from ..files.parts import check_parts, read_parts
from ..files.safefile import read_header
from ..images.preprocess import CLIP_MEAN, CLIP_STD
from .formats import CLIP_FORMATS, find_parts
from .weights import Spec, assign_weights, own_spec, weights_hash

VIT_H = Spec(
    name="OpenCLIP ViT-H/14",
    config={
        "image_size": 224,
        "patch_size": 14,
        "width": 1280,
        "layers": 32,
        "heads": 16,
        "mlp_ratio": 4.0,
        "output_dim": 1024,
    },
    image_size=224,
    mean=CLIP_MEAN,
    std=CLIP_STD,
)
# What tells ViT-H/14 from its relatives: patch embedding, position table, projection.
VIT_H_SHAPES = {"conv1.weight": (1280, 3, 14, 14), "positional_embedding": (257, 1280), "proj": (1280, 1024)}


class ClipFeatures(NamedTuple):
    """cls (B, C): the projected [CLS], not normalized; hidden (B, 1 + M, W): the last layer's input, or None."""

    cls: Tensor
    hidden: Tensor | None


class ClipEncoder(nn.Module):
    """open_clip's `VisionTransformer`, with what the pack must know about it.

    Attributes:
        name, image_size, patch, mean, std: of the encoder.
        width: C, of the [CLS] embedding.
        hidden_width: W, of the hidden states.
        tokens: 1 + M, hidden states per picture.
        weights_hash: see `weights.weights_hash`; empty until loaded.
        file: where the weights are from; None until loaded. A whole CLIP's text tower is there too (`load_text`).
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        from open_clip.transformer import VisionTransformer

        self.visual = VisionTransformer(**spec.config)
        self.name, self.image_size, self.mean, self.std = spec.name, spec.image_size, spec.mean, spec.std
        self.patch = int(spec.config["patch_size"])
        self.hidden_width, self.width = self.visual.proj.shape
        self.tokens = self.visual.positional_embedding.shape[0]
        self.weights_hash = ""
        self.file: Path | None = None

    def forward(self, pixels: Tensor, hidden: bool = False) -> ClipFeatures:
        """Normalized pixels (B, 3, S, S), in the weights' dtype and on their device → features in that dtype.

        `hidden` asks for the hidden states too (transformers' `hidden_states[-2]`).
        """
        if not hidden:
            return ClipFeatures(self.visual(pixels), None)
        found = self.visual.forward_intermediates(
            pixels,
            indices=[len(self.visual.transformer.resblocks) - 2],
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        last = torch.cat([found["image_intermediates_prefix"][0], found["image_intermediates"][0]], dim=1)
        return ClipFeatures(found["image_features"], last)


def load_clip(path: str | Path) -> ClipEncoder:
    """Load the CLIP encoder from a local `.safetensors`, memory-mapped, on the CPU, in the file's dtype.

    Formats: open_clip (the whole model or the visual tower), transformers (`CLIPVisionModelWithProjection` or a whole
    `CLIPModel`), and a file that carries its own sizes (`weights.own_spec`).

    A ViT-H/14 of the same shapes with another activation (DFN5B, MetaCLIP: "quickgelu") cannot be told from OpenCLIP's
    by its keys; its `weights_hash` differs.

    Raises:
        FlexIPError: no such file, a pickle, a damaged file (`safefile.read_header`); another model, by its name;
            missing, extra, wrongly shaped, quantized or NaN tensors.
    """
    path = Path(path)
    header = read_header(path)
    spec = own_spec(path, header, "open_clip")
    parts = find_parts(header, CLIP_FORMATS)
    known = spec is not None or (
        parts is not None
        and all(name in parts and parts[name].shape(header) == wanted for name, wanted in VIT_H_SHAPES.items())
    )
    if parts is None or not known:
        raise FlexIPError(f"{path} is {identify(header)}; expected here is {CLIP_WANTED}")
    try:
        with torch.device("meta"):
            encoder = ClipEncoder(spec or VIT_H)
    except Exception as error:  # whatever the library raises about sizes that the file brought
        raise FlexIPError(f"{path} has a config that open_clip's VisionTransformer refuses: {error}") from error
    dtype = check_parts(path, header, parts, encoder.visual)
    tensors = read_parts(path, parts)
    assign_weights(encoder.visual, tensors, dtype)
    encoder.weights_hash, encoder.file = weights_hash(tensors), path
    return encoder.eval()
