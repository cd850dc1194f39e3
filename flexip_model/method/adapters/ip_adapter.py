"""IP-Adapter, the baseline of the paper's Fig. 1, and IP-Adapter-Plus: preservation alone.

Letters: B batch, M retrieval tokens (CLIP's hidden states), N image tokens, W token width.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import FlexIPConfig
from ..resampler import Resampler
from .base import Adapter, EncoderOutputs, EncoderWidths, ReferenceFeatures


class ImageProjection(nn.Module):
    """Plain IP-Adapter's image tokens: one Linear of the [CLS], cut into tokens, normalized."""

    def __init__(self, config: FlexIPConfig, ops: Any) -> None:
        super().__init__()
        self.queries = config.queries
        self.project = ops.Linear(config.clip_width, config.queries * config.token_width)
        self.norm = ops.LayerNorm(config.token_width)

    def forward(self, cls: Tensor) -> Tensor:
        """(B, clip_width) → (B, N, W)."""
        tokens: Tensor = self.norm(rearrange(self.project(cls), "b (n w) -> b n w", n=self.queries))
        return tokens


class IPAdapter(Adapter):
    """Plain IP-Adapter: image tokens from the [CLS] embedding.

    Its null image is a zero embedding, as in its training.
    """

    kind = "ip-adapter"
    description = "IP-Adapter, imported: preservation only"
    queries_are = "image tokens"

    def __init__(self, config: FlexIPConfig, ops: Any = nn) -> None:
        super().__init__(config)
        self.image_projection = ImageProjection(config, ops)
        self.add_sites(ops)

    @staticmethod
    def widths(config: FlexIPConfig) -> EncoderWidths:
        """The [CLS] embedding."""
        return EncoderWidths(clip_cls=config.clip_width)

    @staticmethod
    def features(outputs: EncoderOutputs) -> ReferenceFeatures:
        """The [CLS] embedding; `patches` is empty, (B, 0, clip_width)."""
        cls = outputs.clip_cls()
        return ReferenceFeatures(cls, cls.new_zeros(len(cls), 0, cls.shape[1]))

    def preservation(self, features: ReferenceFeatures) -> Tensor:
        """P: (B, N, W)."""
        tokens: Tensor = self.image_projection(features.cls)
        return tokens


class IPAdapterPlus(Adapter):
    """IP-Adapter-Plus: learnable queries retrieve from CLIP's hidden states (another Z^(D)).

    Its null image is the hidden states of zeros, as in its training.
    """

    kind = "ip-adapter-plus"
    description = "IP-Adapter-Plus, imported: preservation only"

    def __init__(self, config: FlexIPConfig, ops: Any = nn) -> None:
        super().__init__(config)
        self.project_retrieval = ops.Linear(config.retrieval_width, config.width)
        self.queries = nn.Parameter(torch.randn(1, config.queries, config.width) / config.width**0.5)
        self.resampler_queries = Resampler(config, ops)
        self.add_sites(ops)

    @staticmethod
    def widths(config: FlexIPConfig) -> EncoderWidths:
        """CLIP's hidden states."""
        return EncoderWidths(clip_hidden=config.retrieval_width)

    @staticmethod
    def features(outputs: EncoderOutputs) -> ReferenceFeatures:
        """CLIP's hidden states in the place of Z^(D), the [CLS] among them; the [CLS] embedding is not read."""
        hidden, keep = outputs.clip_hidden()
        return ReferenceFeatures(outputs.clip_cls(), hidden, keep)

    def preservation(self, features: ReferenceFeatures) -> Tensor:
        """P = Resampler_L's tokens: (B, N, W)."""
        d = self.project_retrieval(features.patches)
        queries = self.queries.to(d).expand(d.shape[0], -1, -1)
        tokens: Tensor = self.resampler_queries(queries, d, features.keep)
        return tokens
