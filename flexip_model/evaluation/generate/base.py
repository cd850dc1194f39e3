"""An SD1.5 to draw with: a folder in diffusers' layout, or a single file beside such a folder's configs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import FlexIPError
from ...encoders.weights import weights_hash
from ...hosts.base import freeze_parts, load_parts
from ...method import sd15

log = logging.getLogger(__name__)


@dataclass
class Base:
    """UNet, VAE, text encoder, tokenizer and scheduler of diffusers and transformers, without gradients.

    Attributes:
        hash: of the UNet's weights as they were loaded.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    hash: str
    _cut: set[str] = field(default_factory=set, repr=False)

    def to(self, device: torch.device, dtype: torch.dtype) -> Base:
        """Move and cast the three networks."""
        for module in (self.unet, self.vae, self.text_encoder):
            torch.nn.Module.to(module, device, dtype)  # diffusers' own warns of every cast
        return self

    @property
    def size(self) -> int:
        """Pixels of a side that the UNet was trained for."""
        return int(self.unet.config.sample_size) * self.scale

    @property
    def scale(self) -> int:
        """Pixels of a side per latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def read(self, prompts: list[str]) -> Tensor:
        """Z^(T), (B, 77, W): the last hidden state after the final norm; longer prompts are cut, which the log says
        once of each."""
        for prompt in dict.fromkeys(prompts):
            tokens = len(self.tokenizer(prompt, verbose=False).input_ids)
            if tokens > sd15.TEXT_LENGTH and prompt not in self._cut:
                self._cut.add(prompt)
                log.warning(
                    f"warning: the prompt {prompt!r} has {tokens} tokens; the {sd15.TEXT_LENGTH} first are read"
                )
        ids = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=sd15.TEXT_LENGTH, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids.to(self.text_encoder.device)).last_hidden_state

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 4, s, s), scaled, to pixels (B, 3, S, S) in [0, 1], float32 on the CPU."""
        like = next(self.vae.parameters())
        pixels = self.vae.decode((latents / self.vae.config.scaling_factor).to(like.device, like.dtype)).sample
        return (pixels.float().cpu() / 2 + 0.5).clamp(0, 1)


def load_base(place: Path, configs: Path | None = None) -> Base:
    """Load a base in fp32 on the CPU; nothing is downloaded.

    Args:
        place: a folder in diffusers' layout, or a `.safetensors` checkpoint.
        configs: for a checkpoint, a folder in diffusers' layout whose configs and tokenizer it takes; weights need not
            be in it.

    Raises:
        FlexIPError: no such place, or as `load_parts` and `freeze_parts`.
    """
    if not place.exists():
        raise FlexIPError(f"there is no base {place}; give a folder in diffusers' layout or a .safetensors checkpoint")
    parts = freeze_parts(load_parts(place, configs, local_files_only=True))
    return Base(**parts, hash=weights_hash(parts["unet"].state_dict()))
