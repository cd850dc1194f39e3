"""Image Reward (arXiv 2304.05977): how people would like a picture for its text, by a BLIP with a linear head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import FlexIPError
from ...files.safefile import load_tensors
from ...images.preprocess import CLIP_MEAN, CLIP_STD
from ..loading import ERRORS, folder_hash, load_part

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""The published reward is (head − mean) / std with these."""
LENGTH = 35
"""Tokens of a prompt; longer ones are cut, as published."""
HEAD_WIDTH = 64
VISION = (
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"^norm\.", "post_layernorm."),
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
)
"""BLIP's own names of its picture tower to transformers'; those of the text tower are the same."""


class ImageReward:
    """The published weights, saved as `.safetensors` under their own names, in transformers' BLIP classes."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from torchvision import transforms
        from transformers import AutoTokenizer

        self.device, self.hash = device, folder_hash(folder)
        self.tokenizer = load_part(AutoTokenizer, folder)
        tensors = {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_tensors(path).items()}
        try:
            self.vision, side = _vision(_below(tensors, "blip.visual_encoder."))
            self.text = _text(_below(tensors, "blip.text_encoder."))
            head = _below(tensors, "mlp.layers.")
            numbers = sorted({int(key.split(".")[0]) for key in head})
            self.head = [(head[f"{n}.weight"].float(), head[f"{n}.bias"].float()) for n in numbers]
            if not numbers:
                raise KeyError("mlp.layers.0.weight")
        except ERRORS as error:
            raise FlexIPError(
                f"{folder} does not hold Image Reward's tensors under their published names "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
        for module in (self.vision, self.text):
            module.float().to(device).eval().requires_grad_(False)
        self.preparation = f"shorter side to {side} px, bicubic, center crop; CLIP's mean and deviation"
        self.prepare = transforms.Compose(
            [
                transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(side),
                transforms.ToTensor(),
                transforms.Normalize(CLIP_MEAN, CLIP_STD),
            ]
        )

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """One reward per picture and its text."""
        seen = self.vision(torch.stack([self.prepare(p) for p in pictures]).to(self.device)).last_hidden_state
        asked = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(self.device)
        found: Tensor = self.text(
            input_ids=asked["input_ids"],
            attention_mask=asked["attention_mask"],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=self.device),
        ).last_hidden_state[:, 0]
        found = found.float().cpu()
        for weight, bias in self.head:
            found = F.linear(found, weight, bias)
        return ((found[:, 0] - MEAN) / STD).tolist()


def _vision(tensors: dict[str, Tensor]) -> tuple[Any, int]:
    """The picture tower and the side of its pictures, both by the tensors' shapes."""
    from transformers import BlipVisionConfig, BlipVisionModel

    for old, new in VISION:
        tensors = {re.sub(old, new, key): value for key, value in tensors.items()}
    width, _, patch, _ = tensors["embeddings.patch_embedding.weight"].shape
    side = round((tensors["embeddings.position_embedding"].shape[1] - 1) ** 0.5) * patch
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layers(tensors, "encoder.layers."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=side,
        patch_size=patch,
        layer_norm_eps=1e-6,  # BLIP's own; transformers' default is 1e-5
    )
    return _filled(BlipVisionModel(config), tensors), side


def _text(tensors: dict[str, Tensor]) -> Any:
    """The text tower, which looks at the picture through cross-attention."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    words, width = tensors["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=tensors["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_layers(tensors, "encoder.layer."),
        num_attention_heads=width // HEAD_WIDTH,
        encoder_hidden_size=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        # No text is made, so none of these is read; they only have to be words that there are.
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        sep_token_id=0,
    )
    return _filled(BlipTextModel(config, add_pooling_layer=False), tensors)


def _filled(module: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Every parameter from the tensors; tensors that the module has no place for are left."""
    missing = [key for key, _ in module.named_parameters() if key not in tensors]
    if missing:
        raise KeyError(missing[0])
    wanted = module.state_dict()
    module.load_state_dict({key: tensors.get(key, value) for key, value in wanted.items()})
    return module


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in tensors if key.startswith(prefix))
