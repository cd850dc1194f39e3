"""The FlexIP adapter: tokens P and S from a reference and a prompt (§3).

Letters: B batch, T text tokens, M retrieval tokens (DINO patches), N_L learnable queries, W token width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import FlexIPConfig
from ..gate import DynamicWeightGate
from ..resampler import Resampler
from .base import Adapter, EncoderOutputs, EncoderWidths, ReferenceFeatures


class FlexIPAdapter(Adapter):
    """Preservation adapter (§3.2), personalization adapter (§3.3), gate (§3.4) and the branches of every site."""

    kind = "flexip"
    description = "FlexIP adapter (preservation and personalization)"
    has_personalization = True
    cls_tokens = 1

    def __init__(self, config: FlexIPConfig, ops: Any = nn) -> None:
        super().__init__(config)
        self.project_retrieval = ops.Linear(config.retrieval_width, config.width)
        self.queries = nn.Parameter(torch.randn(1, config.queries, config.width) / config.width**0.5)
        self.resampler_queries = Resampler(config, ops)
        self.project_cls = ops.Linear(config.clip_width, config.width)
        self.project_text = ops.Linear(config.text_width, config.width)
        self.resampler_cls = Resampler(config, ops)
        self.resampler_text = Resampler(config, ops)
        self.gate = DynamicWeightGate(config)
        self.add_sites(ops)

    @property
    def preservation_tokens(self) -> int:
        """N_L + N_C = 17 at the defaults (§3.2, Eq. 2)."""
        return self.config.queries + self.cls_tokens

    @staticmethod
    def widths(config: FlexIPConfig) -> EncoderWidths:
        """The [CLS] embedding and DINO's patches."""
        return EncoderWidths(clip_cls=config.clip_width, dino_patches=config.retrieval_width)

    @staticmethod
    def features(outputs: EncoderOutputs) -> ReferenceFeatures:
        """Z^(C) from CLIP, Z^(D) from DINO; the null image's zeros become a learned null by biases (our choice)."""
        return ReferenceFeatures(outputs.clip_cls(), *outputs.dino_patches())

    def null_features(self, batch: int, like: Tensor) -> ReferenceFeatures:
        """The features of the null image without encoders: zeros, as `features` gives them.

        `like` is a (…, M, retrieval_width) tensor that gives M, dtype and device.
        """
        return ReferenceFeatures(like.new_zeros(batch, self.config.clip_width), like.new_zeros(batch, *like.shape[-2:]))

    def preservation(self, features: ReferenceFeatures) -> Tensor:
        """P = Z^(R,L) ⊕ Z^(R,C) (§3.2, Eq. 2): (B, N_L + 1, W)."""
        d = self.project_retrieval(features.patches)
        queries = self.queries.to(d).expand(d.shape[0], -1, -1)
        tokens = self.resampler_queries(queries, d, features.keep)
        cls = self.resampler_cls(self.project_cls(features.cls)[:, None], d, features.keep)
        return torch.cat([tokens, cls], dim=1)

    def personalization(self, text: Tensor, cls: Tensor) -> Tensor:
        """S = Resampler_T(Z^(T), Z^(C)) (§3.3, Eq. 3): text (B, T, text_width), cls (B, clip_width) → (B, T, W)."""
        tokens: Tensor = self.resampler_text(self.project_text(text), self.project_cls(cls)[:, None])
        return tokens

    def restore_buffers(self) -> None:
        """Make the gate's constants anew."""
        self.gate = DynamicWeightGate(self.config)
