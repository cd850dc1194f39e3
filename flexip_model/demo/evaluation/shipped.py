"""An exported folder read back, for reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ...files.adapter_file import build_adapter, load_adapter_file
from ..scenes.words import Words
from ..stages.base import Base
from ..stages.encoders import Features
from ..stages.export import ADAPTER_FILE, ENCODER_FILES


class Shipped:
    """The parts of an exported folder, in fp32 on the CPU, through the loaders that users' files go through."""

    def __init__(self, folder: Path) -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        from ...encoders import load_clip, load_dino

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
