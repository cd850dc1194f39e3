"""What all kinds of adapters share: what they read of the encoders, and keys and values at each site.

Letters: B batch, M retrieval tokens, N tokens of P, T text tokens, W token width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...common.errors import FlexIPError
from ..attention import Branch
from ..config import FlexIPConfig
from ..sites import SD15_SITES, Site


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

    def to(self, device: torch.device) -> ReferenceFeatures:
        """The same on another device."""
        keep = None if self.keep is None else self.keep.to(device)
        return ReferenceFeatures(self.cls.to(device), self.patches.to(device), keep)


class EncoderOutputs(Protocol):
    """What the frozen encoders make of B references, or of no reference (the null image).

    An adapter kind asks for what it reads, and nothing else is computed. All is float32, each on its own encoder's
    device. Retrieval tokens come with the mask of those on the subject, (B, M) bool, or None where all count.
    """

    def clip_hidden(self) -> tuple[Tensor, Tensor | None]:
        """CLIP's hidden states before its last layer, [CLS] first: (B, 1 + M, hidden width); null: those of zeros."""

    def clip_cls(self) -> Tensor:
        """CLIP's projected [CLS] embedding, (B, clip_width); null: zeros."""

    def dino_patches(self) -> tuple[Tensor, Tensor | None]:
        """DINO's patch tokens, (B, M, width); null: zeros.

        Raises:
            FlexIPError: no DINO encoder is loaded.
        """


class EncoderWidths(NamedTuple):
    """The widths that an adapter reads of each encoder output; None where it reads none of it."""

    clip_cls: int | None = None
    clip_hidden: int | None = None
    dino_patches: int | None = None


class SiteBranches(nn.Module):
    """The branches' keys and values at one cross-attention site."""

    def __init__(self, config: FlexIPConfig, site: Site, has_personalization: bool, ops: Any) -> None:
        super().__init__()
        channels = config.channels[site.level]
        self.preservation = Branch(config.token_width, channels, ops)
        self.personalization = Branch(config.token_width, channels, ops) if has_personalization else None


class Adapter(nn.Module, ABC):
    """An adapter kind: how it makes tokens of a reference, and the branches of every site.

    Module paths are the checkpoint's keys; the branches of a site lie under the site's own name, as in
    `down_blocks.0.attentions.0.attn2.preservation.to_k.weight`. A kind makes its own layers and then calls `add_sites`.

    Attributes:
        kind: the config's name of the class.
        description: the kind in words, for `inspect`.
        has_personalization: whether there is a branch S beside P.
        queries_are: what `FlexIPConfig.queries` counts, for `inspect`.
        cls_tokens: how many of a reference's tokens, the last ones of its P, come of the CLIP [CLS].

    Args:
        config: sizes; of this kind.

    Raises:
        FlexIPError: the config is another kind's.
    """

    kind: ClassVar[str]
    description: ClassVar[str]
    has_personalization: ClassVar[bool] = False
    queries_are: ClassVar[str] = "queries"
    cls_tokens: ClassVar[int] = 0

    def __init__(self, config: FlexIPConfig, ops: Any = nn) -> None:
        super().__init__()
        if config.kind != self.kind:
            raise FlexIPError(f"adapter kind is {config.kind!r}; expected {self.kind}")
        self.config = config

    def add_sites(self, ops: Any) -> None:
        """Add the branches of the 16 sites, each under its site's name; after the kind's own layers."""
        for site in SD15_SITES:
            parent: nn.Module = self
            for part in site.name.split("."):
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module("attn2", SiteBranches(self.config, site, self.has_personalization, ops))

    def site(self, site: Site) -> SiteBranches:
        """The branches of one site."""
        found = self.get_submodule(f"{site.name}.attn2")
        assert isinstance(found, SiteBranches)
        return found

    @torch.no_grad()
    def copy_text_attention(self, unet: nn.Module) -> None:
        """Set keys and values of every branch to the UNet's own of the text, as IP-Adapter's begin (our choice).

        Args:
            unet: with diffusers' module names, of the config's widths.
        """
        for site in SD15_SITES:
            own: Any = unet.get_submodule(site.diffusers)
            for branch in self.site(site).children():
                assert isinstance(branch, Branch)
                branch.to_k.weight.copy_(own.to_k.weight)
                branch.to_v.weight.copy_(own.to_v.weight)

    @property
    def preservation_tokens(self) -> int:
        """N, the number of tokens in P."""
        return self.config.queries

    @staticmethod
    @abstractmethod
    def widths(config: FlexIPConfig) -> EncoderWidths:
        """The widths of what `features` reads."""

    @staticmethod
    @abstractmethod
    def features(outputs: EncoderOutputs) -> ReferenceFeatures:
        """What this kind reads of the encoders; of the null image where `outputs` are those of no reference."""

    @abstractmethod
    def preservation(self, features: ReferenceFeatures) -> Tensor:
        """P, the tokens of a reference: (B, N, W)."""

    def personalization(self, text: Tensor, cls: Tensor) -> Tensor:
        """S, the tokens of a prompt: text (B, T, text_width), cls (B, clip_width) → (B, T, W).

        Raises:
            FlexIPError: this kind has no personalization branch.
        """
        raise FlexIPError(f"an adapter of kind {self.kind} has no personalization branch")

    def restore_buffers(self) -> None:
        """Compute anew what no file holds, after the module was made on `meta`."""
