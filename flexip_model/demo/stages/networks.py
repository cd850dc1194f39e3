"""The demo model's networks: the classes of full size at tiny sizes, with random weights.

UNet: SD1.5's structure (16 cross-attention sites) with four narrow levels and 2 heads. GroupNorm has 16 groups and
in the VAE one: with SD1.5's 32 there would be one to three channels a group, which removes the color of plain areas.
Heads are few because narrow heads are slow on a CPU. The UNet predicts v (Salimans and Ho, 2022): at much noise ε
says almost nothing of the picture, so a short training on ε hardly asks the UNet to read its references there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...images.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from ...method.config import FlexIPConfig
from ..scenes.words import LENGTH

TEXT_WIDTH = 128
ENCODER_WIDTH = 128
ENCODER_SIDE = 112
CHANNELS = (48, 128, 128, 64)
"""Widths of the UNet's levels. Version 4's (64, 96, 96, 64) spend most of their arithmetic on the 16 × 16 level, where
few of the weights are. These hold 9.9 M weights in place of 7.1 M at about the same speed, and
seemed to learn the much noised steps a little better (tried once, on twelve words; no command prints it)."""
GRID = 16
"""Patches of the DINO-like encoder, queries of the adapter and places of a latent: so many a side of each."""

UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": list(CHANNELS),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 16,
    "use_linear_projection": False,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
CLIP_VISION: dict[str, Any] = {
    "image_size": ENCODER_SIDE,
    "patch_size": 16,
    "width": ENCODER_WIDTH,
    "layers": 4,
    "heads": 4,
    "mlp_ratio": 4.0,
    "output_dim": ENCODER_WIDTH,
}
DINO: dict[str, Any] = {
    "image_size": ENCODER_SIDE,
    "patch_size": ENCODER_SIDE // GRID,
    "hidden_size": ENCODER_WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "mlp_ratio": 4,
}
ADAPTER = FlexIPConfig(
    width=128,
    depth=2,
    heads=4,
    head_width=32,
    queries=GRID**2,
    clip_width=ENCODER_WIDTH,
    retrieval_width=ENCODER_WIDTH,
    text_width=TEXT_WIDTH,
    token_width=TEXT_WIDTH,
    channels=CHANNELS,
)


def encoder_metadata(family: str) -> dict:
    """What an exported encoder file says of itself (metadata key `flexip.encoder`)."""
    if family == "open_clip":
        return {
            "family": family,
            "name": "FlexIP demo CLIP",
            "config": CLIP_VISION,
            "image_size": ENCODER_SIDE,
            "mean": CLIP_MEAN,
            "std": CLIP_STD,
        }
    return {
        "family": family,
        "name": "FlexIP demo DINO",
        "config": DINO,
        "image_size": ENCODER_SIDE,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }


def build_unet() -> Any:
    """A new UNet; as in SD1.5's own training, its residual branches and its last layer start at zero."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    unet: Any = UNet2DConditionModel(**UNET)
    last = [part.conv2 for part in unet.modules() if isinstance(part, ResnetBlock2D)]
    last += [part.proj_out for part in unet.modules() if isinstance(part, Transformer2DModel)]
    for layer in [*last, unet.conv_out]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return unet


def build_text_encoder(vocabulary: int) -> Any:
    """A CLIP text model for a vocabulary whose last two ids are the start and end tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            projection_dim=ENCODER_WIDTH,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def build_clip_vision() -> Any:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(**CLIP_VISION)


def place_waves(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, (side², width), low frequencies strongest; `width` divisible by 4.

    Places are told apart by them at once; a random table needs a long training for that.
    """
    count = torch.arange(1, width // 4 + 1)
    angles = (torch.arange(side) + 0.5)[:, None] / side * torch.pi * count
    waves = torch.cat([angles.cos(), angles.sin()], 1) * 0.5 / count.repeat(2)
    return torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], -1).flatten(0, 1)


def build_dino() -> Any:
    """A new DINOv2 model whose position table starts with `place_waves`."""
    from transformers import Dinov2Config, Dinov2Model

    model: Any = Dinov2Model(Dinov2Config(**DINO))
    with torch.no_grad():
        model.embeddings.position_embeddings[0, 1:] += place_waves(GRID, ENCODER_WIDTH)
    return model


def noise_schedule() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULER)


def device_of(module: nn.Module) -> torch.device:
    """Where a network computes."""
    return next(module.parameters()).device
