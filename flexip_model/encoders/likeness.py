"""How alike pictures are by these encoders, and how well they fit a text: CLIP-I, DINO-I, CLIP-T.

Cosines of unit vectors, as DreamBooth (arXiv 2208.12242) defines the three. **These encoders are no independent
judges**: a FlexIP adapter was trained with them.

Letters: B pictures or texts, S an encoder's picture size, C embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .clip import ClipEncoder
from .dino import DinoEncoder
from .pair import encoder_input
from .text import TextEncoder


def unit(features: Tensor) -> Tensor:
    """Features (B, C) as unit vectors, float32 on the CPU."""
    return F.normalize(features.float().cpu(), dim=-1)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosines of unit vectors (…, C) that stand at the same place, −1 to 1."""
    return (a * b).sum(-1)


@torch.no_grad()
def clip_vectors(encoder: ClipEncoder, pixels: Tensor) -> Tensor:
    """Prepared pixels (B, 3, S, S) in [0, 1] → unit vectors (B, C) of the projected [CLS]."""
    return unit(encoder(encoder_input(pixels, encoder)).cls)


@torch.no_grad()
def dino_vectors(encoder: DinoEncoder, pixels: Tensor) -> Tensor:
    """Prepared pixels (B, 3, S, S) in [0, 1] → unit vectors (B, C) of the patch tokens' mean.

    The mean stands in the place of [CLS], which the encoder does not give out (our choice).
    """
    return unit(encoder(encoder_input(pixels, encoder)).float().mean(1))


@torch.no_grad()
def text_vectors(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Texts → unit vectors (B, C) in the space of `clip_vectors`."""
    return unit(encoder(texts))
