"""What a network learns from, on the device: targets painted and encoded once, references beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...files.safefile import load_tensors, write_tensors
from ...images.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalize
from ..scenes.drawn import LENGTH, Drawn
from ..scenes.painter import Painter
from ..stages.encoders import fit

_AT_ONCE = 256


class Encoding:
    """The frozen networks that encode what is painted, on the device."""

    def __init__(self, vae: Any, visual: Any = None, dino: Any = None) -> None:
        self.vae, self.visual, self.dino = vae, visual, dino

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """(n, 3, 128, 128) in [-1, 1] to latents of unit deviation, (n, 4, 16, 16)."""
        code: Tensor = self.vae.encode(pixels).latent_dist.mean
        return code * float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """References to what adapters read of them: cls (n, 128), hidden (n, 50, 128) and patches (n, 256, 128)."""
        seen = fit(pixels)
        found = self.visual(normalize(seen, CLIP_MEAN, CLIP_STD), hidden=True)
        patches = self.dino(normalize(seen, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state[:, 1:]
        return {"cls": found.cls, "hidden": found.hidden, "patches": patches}


@dataclass
class Pool:
    """n targets on the device.

    Attributes:
        latents: float16, (n, 4, 16, 16), of unit deviation.
        mask: float16, (n, 16, 16), the subject's share of each cell.
        ids: int16, (n, prompts, `LENGTH`).
        pad: the id that fills prompts up.
        references: by kind, then by feature, float16, n rows each.
    """

    latents: Tensor
    mask: Tensor
    ids: Tensor
    pad: int
    references: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.latents)

    def prompts(self, picked: Tensor, empty: Tensor, length: int, generator: torch.Generator | None = None) -> Tensor:
        """Ids (n, length), int64, of one prompt each of the targets `picked` (n,); of the empty one where `empty`."""
        which = torch.randint(self.ids.shape[1], picked.shape, device=picked.device, generator=generator)
        ids = torch.full((len(picked), length), self.pad, device=picked.device, dtype=torch.long)
        ids[:, :LENGTH] = self.ids[picked, which].long()
        ids[:, 1:][empty] = self.pad
        return ids

    def write(self, path: Path) -> None:
        """Write all of it but `pad` to a safetensors file."""
        seen = {f"{kind}.{name}": value for kind, of in self.references.items() for name, value in of.items()}
        tensors = {"latents": self.latents, "mask": self.mask, "ids": self.ids, **seen}
        write_tensors(path, {name: value.contiguous() for name, value in tensors.items()}, {"format": "pt"})

    @classmethod
    def read(cls, path: Path, pad: int) -> Pool:
        """What `write` wrote, on the CPU."""
        tensors = load_tensors(path)
        pool = cls(tensors.pop("latents"), tensors.pop("mask"), tensors.pop("ids"), pad)
        for key, value in tensors.items():
            kind, name = key.split(".")
            pool.references.setdefault(kind, {})[name] = value
        return pool


def fill(painter: Painter, drawn: Drawn, encoding: Encoding, pad: int, references: Sequence[str]) -> Pool:
    """Paint and encode; `references` are some of `REFERENCES`."""
    device = painter.device
    rows: dict[str, list[Tensor]] = {"latents": [], "mask": []}
    kinds: dict[str, dict[str, list[Tensor]]] = {kind: {} for kind in references}
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    for start in range(0, len(drawn), _AT_ONCE):
        at = slice(start, start + _AT_ONCE)
        pixels, alpha = painter(torch.from_numpy(drawn.targets[at]).to(device))
        rows["latents"].append(encoding.latents(pixels).half())
        rows["mask"].append(nn.functional.avg_pool2d(alpha, painter.size // 16)[:, 0].half())
        for kind, of in kinds.items():
            pixels, _ = painter(torch.from_numpy(getattr(drawn, kind)[at]).to(device))
            with bf16:
                found = encoding.features(pixels)
            for name, value in found.items():
                of.setdefault(name, []).append(value.half())
    return Pool(
        **{name: torch.cat(parts) for name, parts in rows.items()},
        ids=torch.from_numpy(drawn.ids).to(device),
        pad=pad,
        references={kind: {name: torch.cat(parts) for name, parts in of.items()} for kind, of in kinds.items()},
    )
