"""IP-Adapter files with random weights in their true key layout, at SD1.5's sizes or others."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CHANNELS = (320, 640, 1280, 1280)
# Widths of IP-Adapter's layers 1, 3, 5 …: down, up, middle.
LAYERS = (320, 320, 640, 640, 1280, 1280, *[1280] * 3, *[640] * 3, *[320] * 3, 1280)
TOKENS, WIDTH = 768, 768


def random(*shape: int, scale: float | None = None) -> Tensor:
    return torch.randn(shape) * (shape[-1] ** -0.5 if scale is None else scale)


def attention_weights(token_width: int = TOKENS, layers: tuple[int, ...] = LAYERS) -> dict[str, Tensor]:
    return {
        f"ip_adapter.{2 * number + 1}.{name}_ip.weight": random(channels, token_width)
        for number, channels in enumerate(layers)
        for name in ("to_k", "to_v")
    }


def plain_weights(clip_width: int = 1024, tokens: int = TOKENS, layers: tuple[int, ...] = LAYERS) -> dict[str, Tensor]:
    return {
        "image_proj.proj.weight": random(4 * tokens, clip_width),
        "image_proj.proj.bias": random(4 * tokens, scale=0.1),
        "image_proj.norm.weight": 1 + random(tokens, scale=0.1),
        "image_proj.norm.bias": random(tokens, scale=0.1),
        **attention_weights(tokens, layers),
    }


def plus_weights(
    width: int = WIDTH, tokens: int = TOKENS, layers: tuple[int, ...] = LAYERS, hidden: int = 1280
) -> dict[str, Tensor]:
    weights = {
        "latents": random(1, 16, width),
        "proj_in.weight": random(width, hidden),
        "proj_in.bias": random(width, scale=0.1),
        "proj_out.weight": random(tokens, width),
        "proj_out.bias": random(tokens, scale=0.1),
        "norm_out.weight": 1 + random(tokens, scale=0.1),
        "norm_out.bias": random(tokens, scale=0.1),
    }
    for layer in range(4):
        inner = {
            "0.norm1.weight": 1 + random(width, scale=0.1),
            "0.norm1.bias": random(width, scale=0.1),
            "0.norm2.weight": 1 + random(width, scale=0.1),
            "0.norm2.bias": random(width, scale=0.1),
            "0.to_q.weight": random(width, width),
            "0.to_kv.weight": random(2 * width, width),
            "0.to_out.weight": random(width, width),
            "1.0.weight": 1 + random(width, scale=0.1),
            "1.0.bias": random(width, scale=0.1),
            "1.1.weight": random(4 * width, width),
            "1.3.weight": random(width, 4 * width),
        }
        weights |= {f"layers.{layer}.{key}": value for key, value in inner.items()}
    return {f"image_proj.{key}": value for key, value in weights.items()} | attention_weights(tokens, layers)


def save(path: Path, weights: dict[str, Tensor], **metadata: str) -> Path:
    save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata=metadata or None)
    return path
