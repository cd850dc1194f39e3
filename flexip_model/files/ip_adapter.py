"""IP-Adapter and IP-Adapter-Plus files for SD1.5, imported as preservation-only adapters.

γ of such an adapter is exactly IP-Adapter's weight: the baseline of the paper's Fig. 1, and a start for training. Their
keys name the cross-attention layers by position; the positions follow diffusers' order: down, up, then middle.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import FlexIPError
from ..method import sd15
from ..method.adapters import IPAdapter, IPAdapterPlus, create_adapter
from ..method.config import FlexIPConfig
from ..method.sites import SD15_SITES, Site
from .adapter_file import save_adapter
from .identify import identify
from .parts import Part, Parts, check_parts, read_parts
from .safefile import Header, read_header, sha256

# IP-Adapter writes no head width; its code and diffusers' use 64, with as many heads as fill `to_q`.
HEAD_WIDTH = 64
# Plain IP-Adapter writes no token count either: 4 in all of its SD1.5 files.
PLAIN_TOKENS = 4
TOKEN_WIDTHS = {1024: "SD 2", 2048: "SDXL", 4096: "FLUX or Kolors"}


def ip_adapter_order() -> tuple[Site, ...]:
    """The sites in the order of IP-Adapter's numbers 1, 3, 5 …: down, up, middle."""
    middle = [site for site in SD15_SITES if site.name.startswith("mid_block")]
    return (*(site for site in SD15_SITES if site not in middle), *middle)


def convert_ip_adapter(path: str | Path) -> tuple[FlexIPConfig, dict[str, Tensor], dict[str, Any]]:
    """Read an IP-Adapter (also Light) or IP-Adapter-Plus (also Plus Face) SD1.5 `.safetensors` file.

    Returns:
        The config (`kind` is `ip-adapter` or `ip-adapter-plus`), the state dict of its class, memory-mapped, in
        the file's dtypes, and where it came from, for the adapter file's `training`.

    Raises:
        FlexIPError: what `safefile.read_header` raises; FaceID, Full Face, SDXL and other variants, and other files,
            each by its name; missing, extra, wrongly shaped, quantized or NaN tensors.
    """
    path = Path(path)
    header = read_header(path)
    unsupported = _unsupported(header)
    if unsupported:
        raise FlexIPError(
            f"{path} is {unsupported}; IP-Adapter and IP-Adapter-Plus for SD1.5 with OpenCLIP ViT-H/14 can be converted"
        )
    plus = "image_proj.latents" in header.tensors
    try:
        config = _plus_config(header) if plus else _plain_config(header)
        parts = (_plus_parts(header) if plus else _plain_parts(header)) | _site_parts(header)
    except (KeyError, IndexError, ValueError) as error:
        raise FlexIPError(f"{path} is a damaged IP-Adapter file ({error}); get it again") from error
    unused = sorted(set(header.tensors) - {key for part in parts.values() for key in part.keys})
    if unused:
        raise FlexIPError(f"{path} has {len(unused)} tensors that no IP-Adapter for SD1.5 has, first {unused[0]}")
    with torch.device("meta"):
        adapter = create_adapter(config)
    check_parts(path, header, parts, adapter)
    provenance = {
        "trained": True,
        "source": path.name,
        "source_kind": "IP-Adapter-Plus" if plus else "IP-Adapter",
        "source_sha256": sha256(path),
        "references": {"crop": "center", "white": 0.0},  # as its makers' training code does
        "note": "imported: preservation only; whether and on what it was trained is its makers' word",
    }
    return config, read_parts(path, parts), provenance


def convert_file(source: str | Path, target: str | Path) -> FlexIPConfig:
    """Convert an IP-Adapter file into an adapter file, in the source's dtype; returns its config.

    Raises:
        FlexIPError: see `convert_ip_adapter` and `adapter_file.save_adapter`.
    """
    config, tensors, provenance = convert_ip_adapter(source)
    save_adapter(
        target,
        config,
        tensors,
        training=provenance,
        encoders={"clip": {"name": "OpenCLIP ViT-H/14", "hash": ""}},
        title=f"{provenance['source_kind']} ({provenance['source']})",
        dtype=next(iter(tensors.values())).dtype,
    )
    return config


def _unsupported(header: Header) -> str | None:
    """The name of what this file is, where it cannot be converted."""
    keys = header.tensors
    numbers = {int(match[1]) for key in keys if (match := re.match(r"ip_adapter\.(\d+)\.to_k_ip\.weight$", key))}
    if not numbers:
        return identify(header)
    token_width = next(keys[key].shape[-1] for key in keys if key.endswith(".to_k_ip.weight"))
    if token_width in TOKEN_WIDTHS:
        return (
            f"an IP-Adapter for {TOKEN_WIDTHS[token_width]} (context of {token_width}, SD1.5 has {sd15.CONTEXT_WIDTH})"
        )
    if len(numbers) != len(SD15_SITES):
        return f"an IP-Adapter for {len(numbers)} cross-attention layers, where SD1.5 has {len(SD15_SITES)}"
    if "image_proj.perceiver_resampler.proj_in.weight" in keys:
        return "an IP-Adapter FaceID Plus, which needs a face recognition model"
    if any("_lora." in key for key in keys) or {"image_proj.proj.2.weight", "image_proj.norm.weight"} <= set(keys):
        return "an IP-Adapter FaceID, which needs a face recognition model"
    if "image_proj.proj.3.weight" in keys:
        return "an IP-Adapter Full Face, whose 257 tokens come from an MLP"
    if "image_proj.latents" in keys:
        return None
    plain = keys.get("image_proj.proj.weight")
    if plain is None:
        return "an IP-Adapter of an unknown kind"
    if token_width == sd15.CONTEXT_WIDTH and plain.shape[-1] == 1280:
        return "an IP-Adapter made for OpenCLIP ViT-bigG (embeddings of 1280)"
    return None


def _channels(header: Header) -> tuple[int, ...]:
    widths = [0, 0, 0, 0]
    for number, site in enumerate(ip_adapter_order()):
        widths[site.level] = header.tensors[f"ip_adapter.{2 * number + 1}.to_k_ip.weight"].shape[0]
    return tuple(widths)


def _plain_config(header: Header) -> FlexIPConfig:
    rows, clip_width = header.tensors["image_proj.proj.weight"].shape
    return FlexIPConfig(
        kind=IPAdapter.kind,
        queries=PLAIN_TOKENS,
        clip_width=clip_width,
        token_width=rows // PLAIN_TOKENS,
        text_width=rows // PLAIN_TOKENS,
        channels=_channels(header),
    )


def _plus_config(header: Header) -> FlexIPConfig:
    shape = {key.removeprefix("image_proj."): entry.shape for key, entry in header.tensors.items()}
    _, queries, width = shape["latents"]
    layers = {int(match[1]) for key in shape if (match := re.match(r"layers\.(\d+)\.", key))}
    token_width = shape["proj_out.weight"][0]
    return FlexIPConfig(
        kind=IPAdapterPlus.kind,
        width=width,
        depth=len(layers),
        heads=shape["layers.0.0.to_q.weight"][0] // HEAD_WIDTH,
        head_width=HEAD_WIDTH,
        feed_forward=shape["layers.0.1.1.weight"][0] // width,
        queries=queries,
        retrieval_width=shape["proj_in.weight"][1],
        token_width=token_width,
        text_width=token_width,
        channels=_channels(header),
    )


def _plain_parts(header: Header) -> Parts:
    names = {"proj.": "image_projection.project.", "norm.": "image_projection.norm."}
    return _renamed(header, names)


def _plus_parts(header: Header) -> Parts:
    names = {
        "latents": "queries",
        "proj_in.": "project_retrieval.",
        "proj_out.": "resampler_queries.project_out.",
        "norm_out.": "resampler_queries.norm_out.",
    }
    parts = _renamed(header, names)
    inner = {
        "0.norm1.": "attention.norm_d.",
        "0.norm2.": "attention.norm_x.",
        "0.to_q.": "attention.to_q.",
        "0.to_out.": "attention.to_out.",
        "1.0.": "feed_forward.norm.",
        "1.1.": "feed_forward.widen.",
        "1.3.": "feed_forward.narrow.",
    }
    for layer in range(_plus_config(header).depth):
        source, target = f"image_proj.layers.{layer}.", f"resampler_queries.layers.{layer}."
        for half, name in enumerate(("to_k", "to_v")):
            parts[f"{target}attention.{name}.weight"] = Part((f"{source}0.to_kv.weight",), share=(half, 2))
        for key in header.tensors:
            for old, new in inner.items():
                if key.startswith(source + old):
                    parts[target + new + key.removeprefix(source + old)] = Part((key,))
    return parts


def _renamed(header: Header, names: dict[str, str]) -> Parts:
    parts: Parts = {}
    for key in header.tensors:
        name = key.removeprefix("image_proj.")
        for old, new in names.items():
            if name != key and name.startswith(old):
                parts[new + name.removeprefix(old)] = Part((key,))
    return parts


def _site_parts(header: Header) -> Parts:
    parts: Parts = {}
    for number, site in enumerate(ip_adapter_order()):
        for name in ("to_k", "to_v"):
            key = f"ip_adapter.{2 * number + 1}.{name}_ip.weight"
            if key not in header.tensors:
                raise KeyError(key)
            parts[f"{site.name}.attn2.preservation.{name}.weight"] = Part((key,))
    return parts
