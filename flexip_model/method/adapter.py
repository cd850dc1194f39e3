"""The FlexIP adapter: tokens P and S from a reference and a prompt, keys and values of both at each site.

Letters: B batch, T text tokens, M retrieval tokens (DINO patches), N_L learnable queries, W token width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .attention import Branch
from .config import FlexIPConfig
from .gate import DynamicWeightGate
from .resampler import Resampler
from .sites import SD15_SITES, Site


class ReferenceFeatures(NamedTuple):
    """What the frozen encoders see in a reference.

    Attributes:
        cls: (B, clip_width) the CLIP [CLS] embedding Z^(C), projected; not normalized.
        patches: (B, M, retrieval_width) the retrieval embedding Z^(D).
        keep: (B, M) bool, the retrieval tokens that lie on the subject; None keeps all.
    """

    cls: Tensor
    patches: Tensor
    keep: Tensor | None = None


class SiteBranches(nn.Module):
    """Both branches' keys and values at one cross-attention site."""

    def __init__(self, config: FlexIPConfig, site: Site, ops: Any) -> None:
        super().__init__()
        channels = config.channels[site.level]
        self.preservation = Branch(config.token_width, channels, ops)
        self.personalization = Branch(config.token_width, channels, ops) if config.has_personalization else None


class ImageProjection(nn.Module):
    """Plain IP-Adapter's image tokens: one Linear of the [CLS], cut into tokens, normalized."""

    def __init__(self, config: FlexIPConfig, ops: Any) -> None:
        super().__init__()
        self.queries = config.queries
        self.project = ops.Linear(config.clip_width, config.queries * config.token_width)
        self.norm = ops.LayerNorm(config.token_width)

    def forward(self, cls: Tensor) -> Tensor:
        """(B, clip_width) → (B, queries, W)."""
        return self.norm(self.project(cls).unflatten(-1, (self.queries, -1)))


class FlexIPAdapter(nn.Module):
    """Preservation adapter (§3.2), personalization adapter (§3.3), gate (§3.4) and the branches of every site.

    Module paths are the checkpoint's keys; the branches of a site lie under the site's own name, as in
    `down_blocks.0.attentions.0.attn2.preservation.to_k.weight`.

    Args:
        config: sizes.
        ops: where `Linear` and `LayerNorm` come from; ComfyUI passes its casting ones.
    """

    def __init__(self, config: FlexIPConfig, ops: Any = nn) -> None:
        super().__init__()
        self.config = config
        if config.kind == "ip-adapter":
            self.image_projection = ImageProjection(config, ops)
        else:
            self.project_retrieval = ops.Linear(config.retrieval_width, config.width)
            self.queries = nn.Parameter(torch.randn(1, config.queries, config.width) / config.width**0.5)
            self.resampler_queries = Resampler(config, ops)
        if config.kind == "flexip":
            self.project_cls = ops.Linear(config.clip_width, config.width)
            self.project_text = ops.Linear(config.text_width, config.width)
            self.resampler_cls = Resampler(config, ops)
            self.resampler_text = Resampler(config, ops)
            self.gate = DynamicWeightGate(config)
        for site in SD15_SITES:
            parent: nn.Module = self
            for part in site.name.split("."):
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module("attn2", SiteBranches(config, site, ops))

    def site(self, site: Site) -> SiteBranches:
        """The branches of one site."""
        found = self.get_submodule(f"{site.name}.attn2")
        assert isinstance(found, SiteBranches)
        return found

    @property
    def preservation_tokens(self) -> int:
        """Number of tokens in P: N_L + N_C = 17 at the defaults."""
        return self.config.queries + (1 if self.config.kind == "flexip" else 0)

    def null_features(self, batch: int, like: Tensor) -> ReferenceFeatures:
        """The null image: zero features; through the biased input projections a learned null (our choice).

        `like` is a (…, M, retrieval_width) tensor that gives M, dtype and device.
        """
        return ReferenceFeatures(like.new_zeros(batch, self.config.clip_width), like.new_zeros(batch, *like.shape[-2:]))

    def preservation(self, features: ReferenceFeatures) -> Tensor:
        """P = Z^(R,L) ⊕ Z^(R,C) (Eq. 2): (B, N_L + 1, W)."""
        if self.config.kind == "ip-adapter":
            return self.image_projection(features.cls)
        d = self.project_retrieval(features.patches)
        queries = self.queries.to(d).expand(d.shape[0], -1, -1)
        tokens = self.resampler_queries(queries, d, features.keep)
        if self.config.kind == "ip-adapter-plus":
            return tokens
        cls = self.resampler_cls(self.project_cls(features.cls)[:, None], d, features.keep)
        return torch.cat([tokens, cls], dim=1)

    def personalization(self, text: Tensor, cls: Tensor) -> Tensor:
        """S = Resampler_T(Z^(T), Z^(C)) (Eq. 3): text (B, T, text_width), cls (B, clip_width) → (B, T, W)."""
        return self.resampler_text(self.project_text(text), self.project_cls(cls)[:, None])
