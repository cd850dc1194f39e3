"""Say by its keys and shapes what a file is, before a tensor is read; the names are for the refusals.

Formats are told by keys, never by the file's name.
"""

from __future__ import annotations

import re

from .safefile import Header

CLIP_WANTED = (
    "OpenCLIP ViT-H/14 (for example model.safetensors of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, "
    "or the image encoder that IP-Adapter users have)"
)
DINO_WANTED = "DINOv2-L/14 without registers (for example model.safetensors of facebook/dinov2-large)"

# Width of the vision tower → its name.
CLIP_NAMES = {768: "ViT-B", 1024: "ViT-L", 1152: "ViT-SO400M", 1280: "ViT-H", 1408: "ViT-g", 1664: "ViT-bigG"}
WHOLE = "a whole Stable Diffusion checkpoint"
DINO_NAMES = {384: "S", 768: "B", 1024: "L", 1536: "g"}


def shape(header: Header, *keys: str) -> tuple[int, ...] | None:
    """The shape of the first of these keys that the file has."""
    return next((header.tensors[key].shape for key in keys if key in header.tensors), None)


def identify(header: Header) -> str:
    """Name what the file is, as a noun phrase: "OpenAI CLIP ViT-L/14", "DINOv2-B with registers" …"""
    for look in (_none, _checkpoint, _adapter, _siglip, _clip, _text, _dino3, _dino, _vit, _encoder):
        name = look(header)
        if name:
            return name
    return f"an unknown file (its first tensor is {min(header.tensors)})"


def is_ip_adapter(header: Header) -> bool:
    """Whether the file is an IP-Adapter of any variant."""
    return _has(header, "ip_adapter.", "image_proj.") or any("to_k_ip" in key for key in header.tensors)


def advice(header: Header) -> str:
    """What to do with a file that was given as an adapter and is none; empty where there is nothing to say."""
    if is_ip_adapter(header):
        return "turn it into one with `python -m flexip_model convert FILE OUT`"
    if _checkpoint(header) == WHOLE:
        return "load it with Load Checkpoint"
    if _encoder(header) or _dino(header):
        return "choose it in Load FlexIP Encoders"
    return ""


def _has(header: Header, *starts: str) -> bool:
    return any(key.startswith(starts) for key in header.tensors)


def _none(header: Header) -> str | None:
    return None if header.tensors else "a file without tensors"


def _checkpoint(header: Header) -> str | None:
    if _has(header, "conditioner.embedders."):
        return "an SDXL checkpoint"
    if _has(header, "model.diffusion_model.", "first_stage_model.", "cond_stage_model."):
        return WHOLE
    if _has(header, "down_blocks.", "input_blocks.", "double_blocks.", "single_transformer_blocks."):
        return "a diffusion model (UNet or transformer)"
    return None


def _adapter(header: Header) -> str | None:
    if "flexip.format_version" in header.metadata:
        return "a FlexIP adapter"
    if is_ip_adapter(header):
        return "an IP-Adapter"
    if any("lora" in key for key in header.tensors):
        return "a LoRA"
    return None


def _siglip(header: Header) -> str | None:
    timm = _has(header, "visual.trunk.")
    embeddings = "vision_model.embeddings."
    own = _has(header, "vision_model.head.probe") or (
        f"{embeddings}patch_embedding.weight" in header.tensors and f"{embeddings}class_embedding" not in header.tensors
    )
    if not (timm or own):
        return None
    patch = shape(header, f"{embeddings}patch_embedding.weight")
    vocabulary = shape(header, "text_model.embeddings.token_embedding.weight", "text.token_embedding.weight")
    if (patch and len(patch) == 2) or (vocabulary and vocabulary[0] == 256000):
        return "SigLIP 2"
    return "SigLIP (or SigLIP 2), whose embedding lives in another space than CLIP's"


def _clip(header: Header) -> str | None:
    patch = shape(header, "vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight", "conv1.weight")
    if patch is None or len(patch) != 4:
        if _has(header, "visual.blocks."):
            return "EVA-CLIP"
        return "a CLIP ResNet" if _has(header, "visual.layer1.") else None
    width, size = patch[0], patch[2]
    name = f"CLIP {CLIP_NAMES.get(width, f'ViT of width {width}')}/{size}"
    out = shape(header, "visual_projection.weight")
    if out is None:
        projection = shape(header, "visual.proj", "proj")
        out = projection[::-1] if projection else None
    positions = shape(
        header,
        "vision_model.embeddings.position_embedding.weight",
        "visual.positional_embedding",
        "positional_embedding",
    )
    if positions:
        name += f" at {round((positions[0] - 1) ** 0.5) * size} px"
    return name + (f" (embeddings of {out[0]})" if out else " without its projection")


def _text(header: Header) -> str | None:
    if _has(header, "text_model.", "token_embedding.", "transformer.resblocks.", "encoder.block."):
        return "a text encoder"
    return None


def _dino3(header: Header) -> str | None:
    if _has(header, "rope_embed", "storage_tokens") or (
        "embeddings.patch_embeddings.weight" in header.tensors and "embeddings.register_tokens" in header.tensors
    ):
        return "DINOv3"
    return None


def _dino(header: Header) -> str | None:
    scale = re.compile(r"(dinov2\.)?(blocks\.\d+\.(\d+\.)?ls1\.gamma|encoder\.layer\.\d+\.layer_scale1\.)")
    if not any(scale.match(key) for key in header.tensors):
        return None
    token = shape(header, "embeddings.cls_token", "dinov2.embeddings.cls_token", "cls_token")
    name = f"DINOv2-{DINO_NAMES.get(token[-1], f'like of width {token[-1]}')}" if token else "a DINOv2"
    patch = shape(
        header,
        "embeddings.patch_embeddings.projection.weight",
        "dinov2.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.weight",
    )
    if patch:
        name += f"/{patch[-1]}"
    registers = any(key.endswith(("register_tokens", "reg_token")) for key in header.tensors)
    return name + (" with registers" if registers else "")


def _vit(header: Header) -> str | None:
    token = shape(header, "embeddings.cls_token", "vit.embeddings.cls_token", "cls_token")
    return f"DINO v1 or another ViT of width {token[-1]}" if token else None


def _encoder(header: Header) -> str | None:
    return "an image encoder" if _has(header, "visual.", "vision_model.", "embeddings.patch_embeddings") else None
