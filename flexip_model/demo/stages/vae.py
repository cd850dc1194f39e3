"""The VAE (factor 8, 4 channels, diffusers' AutoencoderKL at a narrow width).

Our choices: L1 on pixels, on their differences (edges) and at half and quarter size; a deterministic code kept
near unit scale by a small pull, so that no adversarial or perceptual network is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import FlexIPError
from ..scenes.compose import to_array

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": 128,
    "block_out_channels": [32, 64, 96, 96],
    "layers_per_block": 1,
    "norm_num_groups": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}


_PINNED = 2.5


def build() -> Any:
    """A new VAE that starts as a linear autoencoder of 8 × 8 block means.

    From a random start this network spends most of a short run on passing plain colors through. So residual
    branches start at zero, the trunk at averages and copies; channels 0 to 5 carry RGB and -RGB
    (silu(x) - silu(-x) = x), and two constant channels pin the scale of the one-group norms.
    """
    from diffusers import AutoencoderKL
    from diffusers.models.attention_processor import Attention
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    model: Any = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, ResnetBlock2D):
                for tensor in part.conv2.parameters():
                    tensor.zero_()
                if part.conv_shortcut is not None:
                    _copy(part.conv_shortcut, torch.ones(1, 1))
            elif isinstance(part, Attention):
                for tensor in part.to_out[0].parameters():
                    tensor.zero_()
            elif isinstance(part, Downsample2D):
                _copy(part.conv, F.pad(torch.full((2, 2), 0.25), (0, 1, 0, 1)))
            elif isinstance(part, Upsample2D):
                _copy(part.conv, torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])) / 16)
        for half in (model.encoder, model.decoder):
            half.conv_in.weight[:8] = 0
            half.conv_in.bias[:8] = torch.tensor([0.0] * 6 + [_PINNED, -_PINNED])
            half.conv_out.weight *= 0.1
            half.conv_norm_out.weight.fill_(_PINNED * (2 / half.conv_norm_out.num_channels) ** 0.5)
            for i in range(3):
                half.conv_in.weight[i, i, 1, 1], half.conv_in.weight[3 + i, i, 1, 1] = 1.0, -1.0
                half.conv_out.weight[i] = 0
                half.conv_out.weight[i, i, 1, 1], half.conv_out.weight[i, 3 + i, 1, 1] = 1.0, -1.0
        for part in (model.quant_conv, model.post_quant_conv):
            part.weight.copy_(torch.eye(len(part.weight))[..., None, None])
            part.bias.zero_()
    return model


def _copy(conv: Any, kernel: Tensor) -> None:
    """Let output i be input i under one kernel; outputs without an input keep a small random start."""
    conv.weight *= 0.3
    conv.weight[:, 6:8] = 0
    conv.bias.zero_()
    for i in range(min(conv.weight.shape[:2])):
        conv.weight[i] = 0
        conv.weight[i, i] = kernel


def to_pixels(pictures: list[Image.Image]) -> Tensor:
    """RGB pictures as float32 in [-1, 1], (n, 3, height, width)."""
    return torch.from_numpy(np.stack([to_array(p) for p in pictures])).float() / 127.5 - 1


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """The reverse of `to_pixels`, clamped."""
    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(v) for v in values]


def reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    loss = (out - target).abs().mean()
    for _ in range(2):
        loss = (
            loss
            + 0.5 * (out.diff(dim=-1) - target.diff(dim=-1)).abs().mean()
            + 0.5 * (out.diff(dim=-2) - target.diff(dim=-2)).abs().mean()
        )
        out, target = F.avg_pool2d(out, 2), F.avg_pool2d(target, 2)
        loss = loss + 0.5 * (out - target).abs().mean()
    return loss


def losses(model: Any, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Of pictures (n, 3, s, s) in [-1, 1] and standard normal noise (n, 4, s/8, s/8): the reconstruction's error, how
    far the code is from unit scale, and "loss"."""
    scale = float(model.config.scaling_factor)
    code = model.encode(pixels).latent_dist.mean * scale
    out = model.decode((code + 0.02 * noise) / scale).sample
    pull = code.pow(2).mean()
    return {"loss": reconstruction_loss(out, pixels) + 1e-3 * pull, "l1": (out - pixels).abs().mean(), "pull": pull}


@torch.no_grad()
def normalize(model: Any, pixels: Tensor) -> None:
    """Fold the latents' mean and deviation into the 1 × 1 convolutions around the code, in place.

    ComfyUI's SD1.5 latent format multiplies by the constant 0.18215, so here `encode(x) * 0.18215` must itself
    have zero mean and unit deviation per channel.
    """
    scale = model.config.scaling_factor
    code = model.encode(pixels).latent_dist.mean
    mean, std = code.mean((0, 2, 3)), code.std((0, 2, 3))
    gain = 1 / (std * scale)
    quant, post = model.quant_conv, model.post_quant_conv
    quant.weight[:4] *= gain[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) * gain
    quant.weight[4:], quant.bias[4:] = 0.0, -20.0
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]


def read(folder: Path) -> Any:
    """A VAE in diffusers' layout, such as the shipped model's, in fp32 and frozen; its latents are normalized already.

    Raises:
        FlexIPError: there is none.
    """
    from diffusers import AutoencoderKL

    if not (folder / "config.json").is_file():
        raise FlexIPError(f"{folder} holds no VAE: it has no config.json.")
    return AutoencoderKL.from_pretrained(folder).float().eval().requires_grad_(False)
