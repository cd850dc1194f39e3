"""DINOv2-L/14 (App. B.1): the patch tokens Z^(D) (§3.1, Eq. 1).

Letters: B batch, S picture size, M = (S / patch)² patches, W width.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.errors import FlexIPError
from ..files.identify import DINO_WANTED, identify
from ..files.parts import Parts, check_parts, read_parts
from ..files.safefile import read_header
from ..images.preprocess import IMAGENET_MEAN, IMAGENET_STD
from .formats import DINO_FORMATS, DINO_MODULES, find_parts
from .weights import Spec, assign_weights, own_spec, weights_hash

# 224 px gives 256 patches, the number that similar published methods use (our choice; the paper gives none).
VIT_L = Spec(
    name="DINOv2-L/14",
    config={
        "image_size": 518,
        "patch_size": 14,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    image_size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
POSITIONS = "embeddings.position_embeddings"


class DinoEncoder(nn.Module):
    """transformers' `Dinov2Model`, with what the pack must know about it.

    The position table may be of another picture size (518 px in the published files); the library's own code
    interpolates it.

    Attributes:
        name, image_size, patch, mean, std: of the encoder.
        width: W, of the patch tokens.
        tokens: M.
        weights_hash: see `weights.weights_hash`; empty until loaded.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        config = Dinov2Config(**spec.config)
        self.model = Dinov2Model(config)
        self.model.embeddings.mask_token = None  # for its own pre-training only; some files lack it
        self.name, self.image_size, self.mean, self.std = spec.name, spec.image_size, spec.mean, spec.std
        self.patch, self.width = int(spec.config.get("patch_size", 14)), int(config.hidden_size)
        self.tokens = (self.image_size // self.patch) ** 2
        self.weights_hash = ""

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalized pixels (B, 3, S, S), in the weights' dtype and on their device → (B, M, W) in that dtype.

        The final norm's output without [CLS], patches in row order.
        """
        tokens: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return tokens[:, 1:]


def load_dino(path: str | Path) -> DinoEncoder:
    """Load the DINO encoder from a local `.safetensors`, memory-mapped, on the CPU, in the file's dtype.

    Formats: transformers (`Dinov2Model`, alone or in a classifier), facebookresearch's (timm's too), with a position
    table of any square size, and a file that carries its own sizes (`weights.own_spec`).

    Raises:
        FlexIPError: no such file, a pickle, a damaged file (`safefile.read_header`); another model, by its name;
            missing, extra, wrongly shaped, quantized or NaN tensors.
    """
    path = Path(path)
    header = read_header(path)
    spec = own_spec(path, header, "dinov2")
    parts = find_parts(header, DINO_FORMATS)
    name = identify(header)
    if parts is None or (spec is None and name != "DINOv2-L/14"):
        raise FlexIPError(f"{path} is {name}; expected here is {DINO_WANTED}")
    if spec is None:
        table = parts[POSITIONS].shape(header) if POSITIONS in parts else ()
        side = math.isqrt(max(table[1] - 1, 0)) if len(table) == 3 else 0
        spec = replace(VIT_L, config={**VIT_L.config, "image_size": side * 14 or 518})
    try:
        with torch.device("meta"):
            encoder = DinoEncoder(spec)
    except Exception as error:  # whatever the library raises about sizes that the file brought
        raise FlexIPError(f"{path} has a config that transformers' Dinov2Config refuses: {error}") from error
    library = _library_names(parts, encoder)
    dtype = check_parts(path, header, {library[key]: part for key, part in parts.items()}, encoder.model)
    tensors = read_parts(path, parts)
    assign_weights(encoder.model, {library[key]: value for key, value in tensors.items()}, dtype)
    encoder.weights_hash = weights_hash(tensors)
    return encoder.eval()


def _library_names(parts: Parts, encoder: DinoEncoder) -> dict[str, str]:
    """The pack's own names → those of the installed transformers' modules (renamed in its version 5)."""
    names = {name: name for name in parts}
    if any(".q_proj." in key for key in encoder.model.state_dict()):
        for hub, library in DINO_MODULES.items():
            names = {name: new.replace(hub, library) for name, new in names.items()}
    return names
