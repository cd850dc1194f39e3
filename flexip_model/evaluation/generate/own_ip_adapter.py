"""diffusers' own IP-Adapter, from local files: its image encoder, its projection and its attention processors.

What this pack makes of the same file (`gated.Gated`) is the same method in other code, so one is the other's check.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import FlexIPError
from ...files.ip_adapter import convert_ip_adapter
from ...images.preprocess import AS_TRAINED
from ...method.config import FlexIPConfig
from ..loading import ERRORS, folder_hash, load_model
from ..reading import read_picture
from .base import Base
from .plan import Wanted

ENCODER_FILES = "config.json and model.safetensors, models/image_encoder of huggingface.co/h94/IP-Adapter"


class OwnIPAdapter:
    """`pipeline.load_ip_adapter` on a base, whose UNet it changes for good; attributes as those of `gated.Gated`.

    Pictures are prepared as diffusers does it: shorter side to the encoder's size, bicubic in 8 bits, center square.
    """

    knob = "scale"
    one_value = True

    def __init__(self, base: Base, file: Path, image_encoder: Path | None, crop: str, device: torch.device) -> None:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging as diffusers_logging
        from transformers import CLIPVisionModelWithProjection

        config, _, origin = convert_ip_adapter(file)  # to refuse by name what diffusers would fail on
        folder = check_folder(image_encoder)
        if crop not in (AS_TRAINED, "center"):
            raise FlexIPError(f"--crop is {crop}; diffusers' own IP-Adapter takes the center alone")
        encoder = load_model(CLIPVisionModelWithProjection, folder, device)
        _check(config, encoder.config, base)
        self.base, self.device = base, device
        self.pipeline: Any = StableDiffusionPipeline(
            vae=None,
            text_encoder=None,
            tokenizer=None,
            unet=base.unet,
            scheduler=None,
            safety_checker=None,
            feature_extractor=None,
            image_encoder=encoder,
            requires_safety_checker=False,
        )
        told = diffusers_logging.get_logger("diffusers.models.modeling_utils")
        level = told.level
        try:
            told.setLevel(logging.ERROR)  # its loader casts a UNet and then warns of casts
            self.pipeline.load_ip_adapter(
                str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None, local_files_only=True
            )
        except ERRORS as error:
            raise FlexIPError(f"diffusers cannot load {file} ({' '.join(str(error).split())[:300]})") from error
        finally:
            told.setLevel(level)
        base.unet.eval().requires_grad_(False)
        self.record: dict[str, Any] = {
            "adapter": origin["source_sha256"],
            "encoders": {"clip": folder_hash(folder)},
            "drawn_by": "diffusers' own IP-Adapter",
        }
        self._embeds: dict[Path, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def adding(self, wanted: Sequence[Wanted], text: Tensor) -> Iterator[dict[str, Any]]:
        """Within, the base's UNet draws these with the first one's scale, from what is given out for its calls.

        There is no strength beside the scale; that of all is to be 1.
        """
        self.pipeline.set_ip_adapter_scale(wanted[0].value)
        pairs = [self._embed(one.reference) for one in wanted]
        embeds = torch.cat([positive for positive, _ in pairs] + [negative for _, negative in pairs])
        yield {"added_cond_kwargs": {"image_embeds": [embeds.to(self.base.unet.dtype)]}}

    @torch.no_grad()
    def _embed(self, path: Path) -> tuple[Tensor, Tensor]:
        """What diffusers reads of a reference and of no reference."""
        if path not in self._embeds:
            pictures = [read_picture(path)]
            (both,) = self.pipeline.prepare_ip_adapter_image_embeds(pictures, None, self.device, 1, True)
            negative, positive = both.chunk(2)
            self._embeds[path] = positive, negative
        return self._embeds[path]


def check_folder(image_encoder: Path | None) -> Path:
    """The image encoder's folder.

    Raises:
        FlexIPError: it is not named or not there; what is wanted, and from where.
    """
    if image_encoder is None or not image_encoder.is_dir():
        found = "" if image_encoder is None else f"there is no folder {image_encoder}; "
        raise FlexIPError(
            f"{found}diffusers' own IP-Adapter needs its image encoder: name --image-encoder FOLDER ({ENCODER_FILES})"
        )
    return image_encoder


def _check(config: FlexIPConfig, encoder: Any, base: Base) -> None:
    """Whether the file, the encoder and the base fit together.

    Raises:
        FlexIPError: they do not; diffusers would end in an error of shapes.
    """
    plain = config.kind == "ip-adapter"
    found, wanted = (
        (encoder.projection_dim, config.clip_width) if plain else (encoder.hidden_size, config.retrieval_width)
    )
    if found != wanted:
        what = "embeddings" if plain else "hidden states"
        raise FlexIPError(
            f"the {what} of the image encoder are {found} wide and the IP-Adapter reads {wanted}; name the folder of "
            "the encoder that it was trained with"
        )
    unet = base.unet.config
    sizes = (tuple(unet.block_out_channels), unet.cross_attention_dim)
    if sizes != (tuple(config.channels), config.token_width):
        raise FlexIPError(
            f"the UNet's widths are {sizes[0]} with a text of {sizes[1]}, the IP-Adapter's {tuple(config.channels)} "
            f"and {config.token_width}; use it with the base that it was trained for"
        )
