"""An SD1.5 base in diffusers' layout, to draw with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import FlexIPError
from ..method import sd15

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass
class Base:
    """UNet, VAE, text encoder, tokenizer and scheduler of diffusers and transformers, without gradients."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any

    def to(self, device: torch.device) -> Base:
        for module in (self.unet, self.vae, self.text_encoder):
            module.to(device)
        return self

    @property
    def size(self) -> int:
        """Pixels of a side that the UNet was trained for."""
        return int(self.unet.config.sample_size) * self.scale

    @property
    def scale(self) -> int:
        """Pixels of a side per value of the latent."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def read(self, prompts: list[str]) -> Tensor:
        """Z^(T), (B, 77, W): the last hidden state after the final norm; longer prompts are cut."""
        ids = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=sd15.TEXT_LENGTH, return_tensors="pt"
        ).input_ids
        text: Tensor = self.text_encoder(ids.to(self.text_encoder.device)).last_hidden_state
        return text

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 4, s, s), scaled, to pixels (B, 3, S, S) in [0, 1], float32 on the CPU."""
        pixels: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (pixels.float().cpu() / 2 + 0.5).clamp(0, 1)


def load_base(folder: Path) -> Base:
    """Load a base in fp32 on the CPU; nothing is downloaded.

    Raises:
        FlexIPError: no such folder, or it holds something else.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise FlexIPError(f"{folder} has no folder {missing[0]}; the base is an SD1.5 model in diffusers' layout")
    kinds = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTokenizer, DDPMScheduler)
    try:
        parts: dict[str, Any] = {
            name: kind.from_pretrained(folder, subfolder=name, local_files_only=True)
            for name, kind in zip(PARTS, kinds, strict=True)
        }
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FlexIPError(f"the base {folder} cannot be loaded ({' '.join(str(error).split())[:300]})") from error
    for name in ("unet", "vae", "text_encoder"):
        parts[name].float().eval().requires_grad_(False)
    return Base(**parts)
