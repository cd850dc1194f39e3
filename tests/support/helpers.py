"""Small real parts shared by tests: an SD1.5-shaped UNet and an adapter at tiny sizes, seeded."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flexip_model.method.adapters import Adapter, ReferenceFeatures, create_adapter
from flexip_model.method.config import FlexIPConfig

from .paths import ROOT

CHANNELS = (32, 64, 96, 96)


def tiny_config(**changes) -> FlexIPConfig:
    sizes = {
        "width": 64,
        "depth": 2,
        "heads": 4,
        "head_width": 16,
        "clip_width": 32,
        "retrieval_width": 40,
        "text_width": 48,
        "token_width": 48,
        "channels": CHANNELS,
    }
    return FlexIPConfig(**{**sizes, **changes})


def damaged_headers(data: bytes, count: int, most: int) -> Iterator[bytes]:
    """`count` copies of a safetensors file, each with 1 to `most` random bytes in its header or the header's length."""
    end = 8 + int.from_bytes(data[:8], "little")
    generator = random.Random(0)
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(generator.randint(1, most)):
            damaged[generator.randrange(end)] = generator.randrange(256)
        yield bytes(damaged)


def tiny_adapter(seed: int = 0, **changes) -> Adapter:
    torch.manual_seed(seed)
    return create_adapter(tiny_config(**changes)).eval().requires_grad_(False)


def tiny_unet(seed: int = 0):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=CHANNELS, cross_attention_dim=48, attention_head_dim=4
    )
    return unet.eval().requires_grad_(False)


def tiny_features(config: FlexIPConfig, batch: int = 1, patches: int = 9, seed: int = 1) -> ReferenceFeatures:
    generator = torch.Generator().manual_seed(seed)
    return ReferenceFeatures(
        torch.randn(batch, config.clip_width, generator=generator),
        torch.randn(batch, patches, config.retrieval_width, generator=generator),
    )


def import_tests_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new processes find functions of a test's file. ComfyUI has a package `tests` too, on the path where it was
    imported before."""
    others = [entry for entry in sys.path if not Path(entry or ".", "tests", "__init__.py").is_file()]
    monkeypatch.setattr(sys, "path", [str(ROOT), *others])
