"""Tiny encoders with random weights, and their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HALF = [0.5, 0.5, 0.5]
CLIP = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_ratio": 4.0, "output_dim": 24}
DINO = {"image_size": 42, "patch_size": 14, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3}
CLIP_SPEC = {"family": "open_clip", "config": CLIP, "image_size": 32, "mean": HALF, "std": HALF}
DINO_SPEC = {"family": "dinov2", "config": DINO, "image_size": 28, "mean": HALF, "std": HALF}


def save(path: Path, tensors: Mapping[str, Tensor], spec: dict | None = None) -> Path:
    metadata = None if spec is None else {"flexip.encoder": json.dumps(spec)}
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, path, metadata=metadata)
    return path


def scramble(module: nn.Module) -> nn.Module:
    """Every parameter random, norms and layer scales too, so that a wrong mapping shows."""
    for value in module.parameters():
        nn.init.normal_(value, 0.1, 0.2)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def clip_models():
    """transformers' tower and open_clip's with the same weights, put there by hand."""
    from open_clip.transformer import VisionTransformer
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    theirs = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            projection_dim=24,
            hidden_act="gelu",
        )
    )
    return scramble(theirs), VisionTransformer(**CLIP)


@pytest.fixture(scope="session")
def dino_model():
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    return scramble(Dinov2Model(Dinov2Config(**DINO)))


@pytest.fixture(scope="session")
def whole_clip():
    """A whole CLIP of transformers, random; its picture tower is that of `CLIP_SPEC`, its tokens are CLIP's own."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(2)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "hidden_act": "gelu",
    }
    text = {
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "vocab_size": 49408,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
    return scramble(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)))
