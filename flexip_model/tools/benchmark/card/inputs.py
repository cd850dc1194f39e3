"""What both hosts are given: the same noise, texts and features of a reference, drawn on the CPU.

Letters: N text tokens, W their width, M patches, s the latents' side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ....files.adapter_file import load_adapter_file
from ....method.adapters import FlexIPAdapter, ReferenceFeatures
from ....method.config import FlexIPConfig

DEMO = Path(__file__).absolute().parents[4] / "models" / "demo"
TOKENS, PATCHES = 77, 16


@dataclass(frozen=True)
class Inputs:
    """One guided step's inputs, float32.

    Attributes:
        noise: (1, 4, s, s).
        texts: (2, 1, N, W), the prompt's and the negative prompt's.
        features, null: of a reference, and of none.
    """

    noise: Tensor
    texts: Tensor
    features: ReferenceFeatures
    null: ReferenceFeatures


def draw(config: FlexIPConfig, latent_side: int, seed: int) -> Inputs:
    """Draw them for an adapter of this config."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    features = ReferenceFeatures(normal(1, config.clip_width), normal(1, PATCHES, config.retrieval_width))
    null = ReferenceFeatures(torch.zeros_like(features.cls), torch.zeros_like(features.patches))
    return Inputs(normal(1, 4, latent_side, latent_side), normal(2, 1, TOKENS, config.text_width), features, null)


def adapter_tensors(model: str) -> tuple[FlexIPConfig, dict[str, Tensor]]:
    """Config and weights of the adapter that ships (`demo`), or of a random one of full size in fp16 (`sd15`)."""
    if model == "demo":
        info, tensors = load_adapter_file(DEMO / "flexip_demo.safetensors")
        return info.config, dict(tensors)
    torch.manual_seed(1)
    config = FlexIPConfig()
    return config, {key: value.half() for key, value in FlexIPAdapter(config).state_dict().items()}


def calls_file(folder: str) -> Path:
    """Where ComfyUI's part leaves its calls for diffusers' part."""
    return Path(folder) / "comfyui_calls.safetensors"
