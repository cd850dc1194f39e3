"""The file formats of the encoders: each unit detects its own by keys and says where every tensor comes from.

A unit takes the header and gives {name in the pack's own form: Part}, or None where the file is in another format.
The pack's own form has open_clip's names for CLIP, and the Hub files' (`facebook/dinov2-large`) for DINO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from ..files.parts import Part, Parts
from ..files.safefile import Header

Format: TypeAlias = Callable[[Header], "Parts | None"]


def clip_open_clip(header: Header) -> Parts | None:
    """open_clip: the visual tower under `visual.` in a whole model."""
    if "visual.conv1.weight" not in header.tensors:
        return None
    return {key.removeprefix("visual."): Part((key,)) for key in header.tensors if key.startswith("visual.")}


def clip_visual(header: Header) -> Parts | None:
    """open_clip: the visual tower alone."""
    if not {"conv1.weight", "class_embedding", "ln_pre.weight"} <= set(header.tensors):
        return None
    return {key: Part((key,)) for key in header.tensors}


def clip_transformers(header: Header) -> Parts | None:
    """transformers: `CLIPVisionModelWithProjection`, or the vision half of a whole `CLIPModel`."""
    prefix = "vision_model."
    if not {f"{prefix}embeddings.class_embedding", "visual_projection.weight"} <= set(header.tensors):
        return None
    plain = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "pre_layrnorm.": "ln_pre.",
        "post_layernorm.": "ln_post.",
    }
    return {"proj": Part(("visual_projection.weight",), transpose=True), **_transformers_tower(header, prefix, plain)}


def text_open_clip(header: Header) -> Parts | None:
    """open_clip: the text tower at the root of a whole model, or under `text.`."""
    prefix = "text." if "text.text_projection" in header.tensors else ""
    if not {f"{prefix}{name}" for name in TEXT_TOWER} <= set(header.tensors):
        return None
    other = ("visual.", "logit_")
    return {
        key.removeprefix(prefix): Part((key,))
        for key in header.tensors
        if key.startswith(prefix) and not key.startswith(other)
    }


def text_transformers(header: Header) -> Parts | None:
    """transformers: the text half of a whole `CLIPModel`, or `CLIPTextModelWithProjection`."""
    prefix = "text_model."
    if not {f"{prefix}embeddings.token_embedding.weight", "text_projection.weight"} <= set(header.tensors):
        return None
    plain = {
        "embeddings.token_embedding.": "token_embedding.",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.": "ln_final.",
    }
    projection = Part(("text_projection.weight",), transpose=True)
    return {"text_projection": projection, **_transformers_tower(header, prefix, plain)}


TEXT_TOWER = ("token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection")


def _transformers_tower(header: Header, prefix: str, plain: Mapping[str, str]) -> Parts:
    """One tower of transformers' CLIP under open_clip's names; `plain` renames what is outside the layers."""
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inner["self_attn.out_proj"] = "attn.out_proj"
    parts: Parts = {}
    for key in header.tensors:
        name = key.removeprefix(prefix)
        if name == key or name == "embeddings.position_ids":
            continue
        if name.startswith("encoder.layers."):
            number, rest = name.removeprefix("encoder.layers.").split(".", 1)
            block = f"transformer.resblocks.{number}."
            layer, _, kind = rest.rpartition(".")
            if layer == "self_attn.q_proj":
                joined = tuple(f"{prefix}encoder.layers.{number}.self_attn.{x}_proj.{kind}" for x in "qkv")
                if all(key in header.tensors for key in joined):
                    parts[f"{block}attn.in_proj_{kind}"] = Part(joined)
            elif layer not in ("self_attn.k_proj", "self_attn.v_proj"):
                parts[f"{block}{inner.get(layer, layer)}.{kind}"] = Part((key,))
        else:
            parts[_rename(name, plain)] = Part((key,))
    return parts


def dino_transformers(header: Header) -> Parts | None:
    """transformers: `Dinov2Model`, in the Hub's names or in those of transformers 5's modules; or in a classifier."""
    prefix = "dinov2." if "dinov2.embeddings.cls_token" in header.tensors else ""
    if not {f"{prefix}embeddings.cls_token", f"{prefix}encoder.layer.0.layer_scale1.lambda1"} <= set(header.tensors):
        return None
    parts: Parts = {}
    for key in header.tensors:
        if key.startswith("classifier.") or key.endswith("embeddings.mask_token"):
            continue
        name = key.removeprefix(prefix)
        for hub, library in DINO_MODULES.items():
            name = name.replace(library, hub)
        parts[name] = Part((key,))
    return parts


# Names of the Hub's files → names of the modules from transformers 5 on.
DINO_MODULES = {
    "attention.attention.query.": "attention.q_proj.",
    "attention.attention.key.": "attention.k_proj.",
    "attention.attention.value.": "attention.v_proj.",
    "attention.output.dense.": "attention.o_proj.",
}


def dino_facebook(header: Header) -> Parts | None:
    """facebookresearch/dinov2 (and timm, which has no mask token): `blocks.0.attn.qkv`, `ls1.gamma`."""
    if not {"cls_token", "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma"} <= set(header.tensors):
        return None
    plain = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "norm.": "layernorm.",
    }
    inner = {
        "attn.proj.": "attention.output.dense.",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    parts: Parts = {}
    for key in header.tensors:
        if key == "mask_token" or key.startswith("head."):
            continue
        if key.startswith("blocks."):
            number, rest = key.removeprefix("blocks.").split(".", 1)
            layer = f"encoder.layer.{number}."
            if rest.startswith("attn.qkv."):
                kind = rest.removeprefix("attn.qkv.")
                for third, what in enumerate(("query", "key", "value")):
                    parts[f"{layer}attention.attention.{what}.{kind}"] = Part((key,), share=(third, 3))
            else:
                parts[layer + _rename(rest, inner)] = Part((key,))
        else:
            parts[_rename(key, plain)] = Part((key,))
    return parts


def _rename(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


CLIP_FORMATS: tuple[Format, ...] = (clip_transformers, clip_open_clip, clip_visual)
DINO_FORMATS: tuple[Format, ...] = (dino_transformers, dino_facebook)
TEXT_FORMATS: tuple[Format, ...] = (text_transformers, text_open_clip)


def find_parts(header: Header, formats: tuple[Format, ...]) -> Parts | None:
    """The parts by the first format that knows the file, or None."""
    for known in formats:
        parts = known(header)
        if parts is not None:
            return parts
    return None
