"""The frozen networks beside which an adapter trains: an SD1.5 base and the two encoders."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.errors import FlexIPError, Mistakes
from ..data.cache.makers import load_vae
from ..data.cache.manifest import Manifest, latents_manifest
from ..encoders import ClipEncoder, DinoEncoder, Encoders, load_clip, load_dino
from ..encoders.weights import weights_hash
from ..hosts.base import freeze_parts, load_parts
from ..method.sd15 import TEXT_LENGTH
from .configs.options import TrainConfig


@dataclass
class Frozen:
    """Base model and encoders, without gradients.

    Attributes:
        unet, vae, text_encoder, tokenizer, scheduler: diffusers' and transformers' own classes.
        encoders: CLIP and DINO.
        latents_manifest: what a cache of this VAE's latents at the run's size must say of itself. It is taken in fp32:
            weights that were cast have another hash.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    encoders: Encoders
    latents_manifest: Manifest

    def to(self, device: torch.device, dtype: torch.dtype) -> Frozen:
        for module in self._modules():
            torch.nn.Module.to(module, device, dtype)  # diffusers' own warns of every cast
        return self

    def _modules(self) -> list[Any]:
        return [self.unet, self.vae, self.text_encoder, self.encoders.clip, self.dino]

    @property
    def dino(self) -> DinoEncoder:
        assert self.encoders.dino is not None
        return self.encoders.dino

    @property
    def clip(self) -> ClipEncoder:
        return self.encoders.clip

    @torch.no_grad()
    def encode_latents(self, pixels: Tensor, posterior: Tensor | None = None) -> Tensor:
        """Pixels to latents, (B, 4, h, w) float32, times the VAE's scaling factor.

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
            posterior: (B, 4, h, w) standard normal: a draw from the VAE's distribution; None takes its mean.
        """
        like = next(self.vae.parameters())
        found: Any = self.vae.encode(pixels.to(like.device, like.dtype)).latent_dist
        code: Tensor = found.mean.float()
        if posterior is not None:
            code = code + found.std.float() * posterior.to(code)
        return code * float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents (B, 4, s, s), scaled, to pixels in [0, 1], float32, on the CPU."""
        like = next(self.vae.parameters())
        pixels: Tensor = self.vae.decode((latents / self.vae.config.scaling_factor).to(like.device, like.dtype)).sample
        return (pixels.float().cpu() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_text(self, input_ids: Tensor) -> Tensor:
        """input_ids (B, 77·k) int64 to Z^(T) (§3.1), (B, 77·k, text_width): the last hidden states after the final norm
        of k pieces, each read by itself (`hosts.prompts`)."""
        pieces = input_ids.reshape(-1, TEXT_LENGTH).to(self.text_encoder.device)
        text: Tensor = self.text_encoder(pieces).last_hidden_state
        return text.reshape(*input_ids.shape, -1)

    def widths(self) -> dict[str, Any]:
        """The fields of `FlexIPConfig` that base and encoders decide."""
        return {
            "clip_width": self.clip.width,
            "retrieval_width": self.dino.width,
            "text_width": int(self.text_encoder.config.hidden_size),
            "token_width": int(self.unet.config.cross_attention_dim),
            "channels": tuple(self.unet.config.block_out_channels),
        }

    def hashes(self) -> dict[str, dict[str, str]]:
        """Names and hashes of the encoders, as the adapter file holds them."""
        return {
            "clip": {"name": self.clip.name, "hash": self.clip.weights_hash},
            "retrieval": {"name": self.dino.name, "hash": self.dino.weights_hash},
        }

    def identities(self) -> dict[str, str]:
        """Hashes of the weights by the config's key that names them; of the weights as they were loaded, before a
        cast. A base's covers its VAE; that comes first by itself, so that it is what a run is told of.

        Configs are known by what a step takes from them: noise schedule, prediction, the scale of the latents.
        """
        parts = {
            f"{name}.{key}": value
            for name in ("unet", "vae", "text_encoder")
            for key, value in getattr(self, name).state_dict().items()
        }
        scale, prediction = self.vae.config.scaling_factor, self.scheduler.config.prediction_type
        return {
            "vae": weights_hash(self.vae.state_dict()),
            "base": weights_hash(parts),
            "base_configs": f"{weights_hash({'noise': self.scheduler.alphas_cumprod})}*{scale:g}*{prediction}",
            "clip": self.clip.weights_hash,
            "dino": self.dino.weights_hash,
        }


def load_frozen(config: TrainConfig) -> Frozen:
    """Load everything that stays as it is, in fp32 on the CPU.

    Raises:
        FlexIPError: the base is no SD1.5, the VAE is none that fits it, an encoder file is not the wanted one, or
            several of these.
    """
    mistakes = Mistakes()
    with mistakes.gathered():
        clip = load_clip(config.clip).float().eval().requires_grad_(False)
    with mistakes.gathered():
        dino = load_dino(config.dino).float().eval().requires_grad_(False)
    with mistakes.gathered():
        parts = freeze_parts(load_parts(config.base, config.base_configs))
        if config.vae is not None:
            parts["vae"] = _own_vae(config.vae, parts["vae"])
    mistakes.tell("{count} of a run's three frozen parts cannot be had:")
    buckets = None if config.buckets is None else (config.buckets.step, config.buckets.limit)
    manifest = latents_manifest(parts["vae"], config.size, buckets)
    return Frozen(**parts, encoders=Encoders(clip, dino), latents_manifest=manifest)


def _own_vae(place: str, replaced: Any) -> Any:
    """A VAE in place of the base's, whose config it takes where it is a single file.

    Raises:
        FlexIPError: as `load_vae`; its latents are not those of the base.
    """
    with tempfile.TemporaryDirectory() as configs:
        replaced.save_config(configs)
        vae = load_vae(place, configs)
    sizes = [(v.config.latent_channels, len(v.config.block_out_channels)) for v in (vae, replaced)]
    if sizes[0] != sizes[1]:
        (channels, blocks), (wanted, deep) = sizes
        raise FlexIPError(
            f"the VAE {place} has {channels} latent channels and {blocks} blocks, and the base's has {wanted} and "
            f"{deep}; give one that was made for this base, or leave vae out"
        )
    return vae


def pick_dtype(precision: str) -> torch.dtype:
    """`bf16` or `fp32` as torch's dtype."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
