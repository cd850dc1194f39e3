"""The networks at SD1.5's real sizes, random weights: what is measured needs no download."""

from __future__ import annotations

from typing import Any

import torch

from ..method import sd15
from ..method.adapters import FlexIPAdapter
from ..method.config import FlexIPConfig


def random_sd15_unet() -> Any:
    """diffusers' UNet at its defaults with SD1.5's width of context: 860 M random fp32 weights (3.4 GB)."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=sd15.CONTEXT_WIDTH, attention_head_dim=sd15.UNET_HEADS
    )
    return unet.eval().requires_grad_(False)


def random_adapter() -> FlexIPAdapter:
    """A full-size adapter with random weights."""
    torch.manual_seed(1)
    return FlexIPAdapter(FlexIPConfig()).eval().requires_grad_(False)


def sd15_vae() -> Any:
    """diffusers' VAE at SD1.5's sizes, random weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=sd15.VAE_WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=sd15.LAYERS_PER_BLOCK,
        latent_channels=sd15.LATENT_CHANNELS,
    ).eval()
