"""What travels along the pack's own wires: encoders, adapter, embeds, the γ list, labels of pictures."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy_api.latest import io
from torch import Tensor, nn

from ..flexip_model.encoders import Encoders, TextEncoder, load_text
from ..flexip_model.files.adapter_file import AdapterInfo, build_adapter, tensors_hash
from ..flexip_model.method.adapters import Adapter, ReferenceFeatures
from .host import manage

FlexIPEncoders = io.Custom("FLEXIP_ENCODERS")
FlexIPAdapterType = io.Custom("FLEXIP_ADAPTER")
FlexIPEmbeds = io.Custom("FLEXIP_EMBEDS")
FlexIPGammas = io.Custom("FLEXIP_GAMMAS")
FlexIPAttention = io.Custom("FLEXIP_ATTENTION")
FlexIPLabels = io.Custom("FLEXIP_LABELS")


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter under ComfyUI's memory management.

    Attributes:
        adapter: the module; its layers cast their weights to the input's dtype and device (`manual_cast`).
        patcher: ComfyUI's handle, which moves and counts the weights.
        info: what the file says of itself.
        name: the file's name, for messages.
        tag: names all of the weights; tokens made with them carry it, so another adapter's tokens are never mistaken.
    """

    adapter: Adapter
    patcher: comfy.model_patcher.ModelPatcher
    info: AdapterInfo
    name: str
    tag: str

    @property
    def p_key(self) -> str:
        """The key of P in a conditioning entry's `model_conds`."""
        return f"flexip_p_{self.tag}"

    @property
    def s_key(self) -> str:
        """The key of S in a conditioning entry's `model_conds`."""
        return f"flexip_s_{self.tag}"

    @property
    def index_key(self) -> str:
        """The key of the pictures' numbers (`PictureNumbers`) in a conditioning entry's `model_conds`."""
        return f"flexip_index_{self.tag}"

    @property
    def text_key(self) -> str:
        """The key, in a conditioning entry, of the text that S was made from."""
        return f"flexip_text_{self.tag}"

    def load(self) -> torch.device:
        """Have ComfyUI put the weights on the device where they compute, and return it."""
        comfy.model_management.load_models_gpu([self.patcher])
        return self.patcher.load_device


def manage_adapter(info: AdapterInfo, tensors: Mapping[str, Tensor], name: str) -> LoadedAdapter:
    """Put an adapter's tensors under ComfyUI's memory management; they are neither copied nor converted."""
    adapter = build_adapter(info, tensors, comfy.ops.manual_cast)
    patcher = manage(adapter, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device())
    digest = hashlib.sha256(f"{info.config.to_json()} {tensors_hash(tensors)}".encode())
    return LoadedAdapter(adapter, patcher, info, name, digest.hexdigest()[:12])


@dataclass(frozen=True, eq=False)
class LoadedEncoders:
    """Both image encoders under ComfyUI's memory management, and CLIP's text tower where its file has one.

    Attributes:
        encoders: the modules.
        patchers: ComfyUI's handles, which move and count the weights.
        recent: features of the last few pictures by what they were made from, so that a new prompt encodes nothing.
    """

    encoders: Encoders
    patchers: tuple[comfy.model_patcher.ModelPatcher, ...]
    recent: OrderedDict[str, ReferenceFeatures] = field(default_factory=OrderedDict)

    def load(self) -> None:
        """Have ComfyUI put both encoders whole on their device: their layers do not cast on the way."""
        comfy.model_management.load_models_gpu(list(self.patchers), force_full_load=True)

    @cached_property
    def text(self) -> tuple[TextEncoder, comfy.model_patcher.ModelPatcher] | None:
        """CLIP's text tower with its handle; None where CLIP's file holds none. It is read when first asked for.

        Raises:
            FlexIPError: as `load_text`.
        """
        file = self.encoders.clip.file
        tower = None if file is None else load_text(file)
        return None if tower is None else (tower, _manage_encoder(tower))


def manage_encoders(encoders: Encoders) -> LoadedEncoders:
    """Put both encoders under ComfyUI's memory management."""
    return LoadedEncoders(encoders, tuple(map(_manage_encoder, filter(None, (encoders.clip, encoders.dino)))))


def _manage_encoder(module: nn.Module) -> comfy.model_patcher.ModelPatcher:
    """A handle on an encoder, which turns to float32 where half precision is slow or missing."""
    device = comfy.model_management.text_encoder_device()
    half = comfy.model_management.should_use_fp16(device, prioritize_performance=False)
    module.to(torch.float16 if half else torch.float32).eval().requires_grad_(False)
    return manage(module, device, comfy.model_management.text_encoder_offload_device())


@dataclass(frozen=True, eq=False)
class Embeds:
    """What FlexIP made of a reference, on the CPU, for nodes that save, inspect or combine it.

    Attributes:
        tag: the adapter that made it.
        preservation: P of all references, (1, N, W).
        null: P of no reference, (1, N_0, W).
        cls: the CLIP [CLS] that S was made with, (1, clip_width).
        features: what the encoders saw in each reference, (B, …).
        seen: the references as the encoders saw them, (B, S, S, 3) in [0, 1]; None where nobody made a picture of it.
    """

    tag: str
    preservation: Tensor
    null: Tensor
    cls: Tensor
    features: ReferenceFeatures
    seen: Tensor | None = None
