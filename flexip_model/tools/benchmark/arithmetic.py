"""What one training sample costs at SD1.5's real sizes, counted on shapes: no weights and no memory are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...encoders.clip import VIT_H, ClipEncoder
from ...encoders.dino import VIT_L, DinoEncoder
from ...hosts.diffusers import Condition, inject
from ...method.adapters import FlexIPAdapter, ReferenceFeatures
from ...method.config import FlexIPConfig
from ...train.frozen import Frozen
from ..example_data import sd15_text_config, sd15_vae
from ..random_models import random_sd15_unet

TOKENS = 77


@dataclass(frozen=True)
class Arithmetic:
    """The cost of one sample in 10⁹ multiply-adds (GMAC), and what the networks weigh.

    Attributes:
        unet: the UNet forward, without an adapter.
        forward: the UNet with the adapter, resamplers included.
        trained: the same and backward, with gradients of the adapter's weights alone.
        vae, clip, dino, text: the frozen encoders, forward, one picture or caption.
        trainable, frozen: parameters.
        activations: bytes that a sample keeps for the backward, in bf16.
    """

    unet: float
    forward: float
    trained: float
    vae: float
    clip: float
    dino: float
    text: float
    trainable: int
    frozen: int
    activations: int

    @property
    def uncached(self) -> float:
        """A training sample, everything encoded anew."""
        return self.trained + self.vae + self.clip + self.dino + self.text

    @property
    def cached(self) -> float:
        """A training sample with latents and [CLS] from a cache."""
        return self.trained + self.dino + self.text


def full_size() -> Frozen:
    """SD1.5 and the two encoders at their real sizes, without weights (torch's `meta` device)."""
    from transformers import CLIPTextModel

    from ...encoders import Encoders

    with torch.device("meta"):
        modules = [random_sd15_unet(), sd15_vae(), CLIPTextModel(sd15_text_config())]
        encoders = Encoders(ClipEncoder(VIT_H), DinoEncoder(VIT_L))
    for module in (*modules, encoders.clip, encoders.dino):
        assert isinstance(module, nn.Module)
        module.eval().requires_grad_(False)
    unet, vae, text = modules
    return Frozen(unet, vae, text, None, None, encoders, None)  # type: ignore[arg-type]


def count(frozen: Frozen, size: int = 512) -> Arithmetic:
    """Count one sample of `size` px; `frozen` is what `full_size` gives."""
    with torch.device("meta"):
        adapter = FlexIPAdapter(FlexIPConfig())
        latent = torch.randn(1, 4, size // 8, size // 8)
        text = torch.randn(1, TOKENS, int(frozen.unet.config.cross_attention_dim))
        pixels = torch.randn(1, 3, size, size)
        seen = [torch.randn(1, 3, e.image_size, e.image_size) for e in (frozen.clip, frozen.dino)]
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
        step = torch.tensor(0)
        found: dict[str, float] = {
            "unet": _gmac(lambda: frozen.unet(latent, step, text)),
            "vae": _gmac(lambda: frozen.vae.encode(pixels)),
            "clip": _gmac(lambda: frozen.clip(seen[0])),
            "dino": _gmac(lambda: frozen.dino(seen[1])),
            "text": _gmac(lambda: frozen.text_encoder(ids)),
            "forward": _gmac(lambda: _guess(frozen, adapter, latent, text)),
            "trained": _gmac(lambda: _guess(frozen, adapter, latent, text).float().pow(2).mean().backward()),
        }
    trainable, kept = parameters(frozen, adapter)
    return Arithmetic(**found, trainable=trainable, frozen=kept, activations=saved_bytes(size))


def parameters(frozen: Frozen, adapter: FlexIPAdapter) -> tuple[int, int]:
    """How many are trained, and how many stay as they are."""
    modules = (frozen.unet, frozen.vae, frozen.clip, frozen.dino, frozen.text_encoder)
    kept = sum(p.numel() for module in modules for p in module.parameters())
    return sum(p.numel() for p in adapter.parameters()), kept


def saved_bytes(size: int) -> int:
    """Bytes that one sample keeps for the backward: UNet and adapter in bf16, attention that keeps no weights.

    Fake tensors, because on the `meta` device torch falls back on attention that does keep them.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: dict[Any, tuple[int, torch.Tensor]] = {}
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode():
            unet, adapter = random_sd15_unet(), FlexIPAdapter(FlexIPConfig())
            own = {p.untyped_storage()._cdata for p in (*unet.parameters(), *adapter.parameters())}

            def keep(value: torch.Tensor) -> torch.Tensor:
                storage = value.untyped_storage()
                if storage._cdata not in own:
                    kept[storage._cdata] = (storage.nbytes(), value)  # the tensor too, so that no address comes twice
                return value

            frozen = Frozen(unet, *[None] * 6)  # type: ignore[arg-type]
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
                guess = _guess(frozen, adapter, torch.randn(1, 4, size // 8, size // 8), torch.randn(1, TOKENS, 768))
            del guess
    finally:
        torch.set_default_dtype(default)
    return sum(size for size, _ in kept.values())


def _guess(frozen: Frozen, adapter: FlexIPAdapter, latent: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The UNet's output with the adapter in it, as `train.step` computes it; references without a mask."""
    config = adapter.config
    patches = (VIT_L.image_size // int(VIT_L.config["patch_size"])) ** 2
    cls = torch.randn(1, config.clip_width)
    features = ReferenceFeatures(cls, torch.randn(1, patches, config.retrieval_width), None)
    host = inject(frozen.unet, adapter)
    host.condition = Condition(
        adapter.preservation(features),
        adapter.personalization(text, cls),
        adapter.gate(torch.zeros(1, dtype=torch.bool)),
    )
    try:
        found: torch.Tensor = frozen.unet(latent, torch.tensor(0), text).sample
        return found
    finally:
        host.eject()


def _gmac(call: Callable[[], object]) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return counter.get_total_flops() / 2e9
