"""A guided step in diffusers at SD1.5's sizes: patched, unpatched, and diffusers' own IP-Adapter processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...hosts.diffusers import Condition, inject
from ...method.adapters import Adapter
from ...method.gate import gamma_tensor
from ..random_models import random_adapter, random_sd15_unet
from ..random_weights import random_tensors
from .timing import Row, compare

IMAGE_TOKENS, TEXT_TOKENS = 16, 77
FLEXIP, UNPATCHED, IP_ADAPTER = "FlexIP", "unpatched", f"IP-Adapter with {IMAGE_TOKENS} tokens"


def steps(size: int, rounds: int) -> list[Row]:
    """Time one UNet call with guidance (batch 2) at `size` pixels, fp32, on the CPU."""
    calls = step_calls(random_sd15_unet(), random_adapter(), size // 8, batch=2)
    label = f"diffusers: a step at {size} px, batch 2, FlexIP against"
    return [
        compare(f"{label} {UNPATCHED}", calls[FLEXIP], calls[UNPATCHED], rounds=rounds, goal="≤ 1.02"),
        compare(f"{label} {IP_ADAPTER}", calls[FLEXIP], calls[IP_ADAPTER], rounds=rounds),
    ]


def drawn_unet(device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """SD1.5's UNet with the random weights that `nodes/dev/benchmark.py` gives ComfyUI's own: drawn on `device`, which
    takes a moment there."""
    with torch.device("meta"):
        unet = random_sd15_unet()
    shapes = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    drawn = random_tensors(shapes, seed, device)
    unet.load_state_dict({name: tensor.to(dtype) for name, tensor in drawn}, assign=True)
    return unet.requires_grad_(False)


def step_calls(
    unet: Any, adapter: Adapter, latent_side: int, batch: int, repeats: int = 1, run: Any = None
) -> dict[str, Callable[[], object]]:
    """Steps of the UNet in three forms, `UNPATCHED`, `FLEXIP` and `IP_ADAPTER`, in the UNet's dtype on its device.

    Args:
        unet: of SD1.5's structure; each call sets its processors.
        latent_side: of the square latents.
        batch: rows of the UNet's batch.
        repeats: steps per call, so that on a GPU setting the processors and waiting for the end weigh nothing.
        run: what is called in the UNet's place, such as a compiled one of it.
    """
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    like = next(unet.parameters())
    where = {"device": like.device, "dtype": like.dtype}
    width = int(unet.config.cross_attention_dim)
    latent = torch.randn(batch, 4, latent_side, latent_side, **where)
    text = torch.randn(batch, TEXT_TOKENS, width, **where)
    time_step = torch.tensor([500], device=like.device)
    runs = unet if run is None else run

    original = dict(unet.attn_processors)
    host = inject(unet, adapter)
    gated = dict(unet.attn_processors)
    condition = Condition(
        torch.randn(batch, adapter.preservation_tokens, width, **where), torch.randn_like(text), gamma_tensor(0.5)
    )
    foreign: dict[str, Any] = {}
    for key, processor in original.items():
        foreign[key] = processor
        if key.endswith("attn2.processor"):
            channels = unet.get_submodule(key.removesuffix(".processor")).to_k.weight.shape[0]
            foreign[key] = IPAdapterAttnProcessor2_0(channels, width, num_tokens=[IMAGE_TOKENS])
            foreign[key].to(**where).requires_grad_(False)
    image = torch.randn(batch, 1, IMAGE_TOKENS, width, **where)

    def with_processors(processors: dict[str, Any], context: Any = text) -> Callable[[], object]:
        def call() -> object:
            unet.set_attn_processor(dict(processors))
            host.condition = condition if processors is gated else None
            with torch.inference_mode():
                for _ in range(repeats):
                    found = runs(latent, time_step, encoder_hidden_states=context).sample
            if like.device.type == "cuda":
                torch.cuda.synchronize()
            return found

        return call

    return {
        UNPATCHED: with_processors(original),
        FLEXIP: with_processors(gated),
        IP_ADAPTER: with_processors(foreign, (text, [image])),
    }
