"""A guided step in diffusers at SD1.5's sizes: patched, unpatched, and diffusers' own IP-Adapter processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...hosts.diffusers import Condition, inject
from ...method import sd15
from ...method.gate import gamma_tensor
from ..random_models import random_adapter, random_sd15_unet
from .timing import Row, compare

IMAGE_TOKENS = 16


def steps(size: int, rounds: int) -> list[Row]:
    """Time one UNet call with guidance (batch 2) at `size` pixels, fp32, on the CPU."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    unet, adapter = random_sd15_unet(), random_adapter()
    latent = torch.randn(2, 4, size // 8, size // 8)
    text = torch.randn(2, sd15.TEXT_LENGTH, sd15.CONTEXT_WIDTH)
    time_step = torch.tensor([500])

    def run(context: Any = text) -> Callable[[], object]:
        def call() -> object:
            with torch.inference_mode():
                return unet(latent, time_step, encoder_hidden_states=context).sample

        return call

    original = dict(unet.attn_processors)
    host = inject(unet, adapter)
    gated = dict(unet.attn_processors)
    condition = Condition(
        torch.randn(2, adapter.preservation_tokens, text.shape[2]), torch.randn_like(text), gamma_tensor(0.5)
    )
    foreign: dict[str, Any] = {}
    for key, processor in original.items():
        foreign[key] = processor
        if key.endswith("attn2.processor"):
            channels = unet.get_submodule(key.removesuffix(".processor")).to_k.weight.shape[0]
            foreign[key] = IPAdapterAttnProcessor2_0(channels, sd15.CONTEXT_WIDTH, num_tokens=[IMAGE_TOKENS])
            foreign[key].requires_grad_(False)
    image = torch.randn(2, 1, IMAGE_TOKENS, sd15.CONTEXT_WIDTH)

    def with_processors(processors: dict[str, Any], call: Callable[[], object]) -> Callable[[], object]:
        def patched() -> object:
            unet.set_attn_processor(dict(processors))
            host.condition = condition if processors is gated else None
            return call()

        return patched

    flexip = with_processors(gated, run())
    label = f"diffusers: a step at {size} px, batch 2"
    return [
        compare(
            f"{label}, FlexIP against unpatched", flexip, with_processors(original, run()), rounds=rounds, goal="≤ 1.02"
        ),
        compare(
            f"{label}, FlexIP against IP-Adapter with {IMAGE_TOKENS} tokens",
            flexip,
            with_processors(foreign, run((text, [image]))),
            rounds=rounds,
        ),
    ]
