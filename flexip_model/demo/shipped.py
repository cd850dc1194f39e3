"""An exported folder read back, for reports and as the beginning of a longer training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapter import FlexIPAdapter
from ..checkpoint import build_adapter, load_adapter_file
from .base import Base
from .encoders import Features
from .export import ADAPTER_FILE, ENCODER_FILES
from .networks import build_adapter as new_adapter
from .networks import build_dino
from .words import Words


class Shipped:
    """The parts of an exported folder, in fp32 on the CPU, through the loaders that users' files go through."""

    def __init__(self, folder: Path) -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        from ..encoders import load_clip, load_dino

        self.words = Words(folder / "tokenizer")
        self.vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae").float().eval().requires_grad_(False)
        self.base = Base.__new__(Base)
        nn.Module.__init__(self.base)
        self.base.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float().eval()
        self.base.text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float().eval()
        self.info, tensors = load_adapter_file(folder / ADAPTER_FILE)
        self.adapter = build_adapter(self.info, {k: v.float() for k, v in tensors.items()})
        visual = load_clip(folder / "encoders" / ENCODER_FILES["open_clip"]).float().visual
        dino = load_dino(folder / "encoders" / ENCODER_FILES["dinov2"]).float().model
        self.features = Features(visual, dino)

    def grown_adapter(self) -> FlexIPAdapter:
        """The adapter with as many queries as `networks.ADAPTER` asks for, interpolated between its own."""
        return _grown(new_adapter(), self.adapter, {"queries": 0})

    def grown_dino(self) -> nn.Module:
        """The DINO-like encoder with the patches of `networks.DINO`: kernel and position table are interpolated."""
        return _grown(build_dino(), self.features.dino, {"embeddings.position_embeddings": 1})


def _grown(new: Any, old: nn.Module, tables: dict[str, int]) -> Any:
    """`new` with the weights of `old`, resized where their shapes differ.

    Args:
        tables: keys of (1, extra + side², width) tables of places, and their number of extra rows.
    """
    state, own = new.state_dict(), old.state_dict()
    with torch.no_grad():
        for key, value in state.items():
            found = own.get(key)
            if found is None:
                continue  # DINO's mask token is not exported
            if key in tables:
                found = _resized_table(found, value.shape[1], tables[key])
            elif found.shape != value.shape:
                factor = (found.shape[-1] / value.shape[-1]) ** 2
                found = factor * F.interpolate(found, value.shape[-2:], mode="area")
            value.copy_(found)
    new.load_state_dict(state)
    return new


def _resized_table(table: Tensor, rows: int, extra: int) -> Tensor:
    head, places = table[:, :extra], table[:, extra:]
    before, after = (round((n) ** 0.5) for n in (places.shape[1], rows - extra))
    square = places.unflatten(1, (before, before)).permute(0, 3, 1, 2)
    square = F.interpolate(square, (after, after), mode="bicubic")
    return torch.cat([head, square.permute(0, 2, 3, 1).flatten(1, 2)], 1)
