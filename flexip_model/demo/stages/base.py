"""The text-to-image base (UNet and text encoder) of the small model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .networks import build_text_encoder, build_unet


class Base(nn.Module):
    """The two networks that stay frozen when the adapter trains."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.unet: Any = build_unet()
        self.text: Any = build_text_encoder(vocabulary)

    def read(self, ids: Tensor) -> Tensor:
        """(n, 77) ids to Z^(T), (n, 77, 128): the final hidden states after the final norm."""
        return self.text(ids).last_hidden_state
