"""The real sizes: OpenCLIP ViT-H/14 (632 M weights) and DINOv2-L/14 (304 M), random, in bf16, one file at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flexip_model.encoders import Encoders, load_clip, load_dino
from flexip_model.method.adapters import IPAdapterPlus

WIDTH, LAYERS = 1280, 32
NOISE_LENGTH = 30_000_000


class Weights:
    """Random tensors by shape, cut from one buffer at an own place each; small values, as in trained towers."""

    def __init__(self) -> None:
        self.noise = torch.randn(NOISE_LENGTH, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
        self.place = 0

    def __call__(self, *shape: int, one: bool = False) -> Tensor:
        size = torch.Size(shape).numel()
        self.place = (self.place + 7919) % (NOISE_LENGTH - size)
        value = self.noise[self.place : self.place + size].view(shape)
        return value + 1 if one else value.clone()


def open_clip_names() -> dict[str, Tensor]:
    """A whole open_clip model: the visual tower, and a little of the text tower beside it."""
    w = Weights()
    tower = {
        "class_embedding": w(WIDTH),
        "positional_embedding": w(257, WIDTH),
        "proj": w(WIDTH, 1024),
        "conv1.weight": w(WIDTH, 3, 14, 14),
        "ln_pre.weight": w(WIDTH, one=True),
        "ln_pre.bias": w(WIDTH),
        "ln_post.weight": w(WIDTH, one=True),
        "ln_post.bias": w(WIDTH),
    }
    for layer in range(LAYERS):
        block = {
            "attn.in_proj_weight": w(3 * WIDTH, WIDTH),
            "attn.in_proj_bias": w(3 * WIDTH),
            "attn.out_proj.weight": w(WIDTH, WIDTH),
            "attn.out_proj.bias": w(WIDTH),
            "mlp.c_fc.weight": w(4 * WIDTH, WIDTH),
            "mlp.c_fc.bias": w(4 * WIDTH),
            "mlp.c_proj.weight": w(WIDTH, 4 * WIDTH),
            "mlp.c_proj.bias": w(WIDTH),
        }
        for norm in ("ln_1", "ln_2"):
            block |= {f"{norm}.weight": w(WIDTH, one=True), f"{norm}.bias": w(WIDTH)}
        tower |= {f"transformer.resblocks.{layer}.{key}": value for key, value in block.items()}
    return {f"visual.{key}": value for key, value in tower.items()} | {"logit_scale": torch.ones(())}


def to_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in the names of `CLIPVisionModelWithProjection`, written out independently of the loader."""
    t = {key.removeprefix("visual."): value for key, value in tensors.items()}
    out = {
        "vision_model.embeddings.class_embedding": t["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": t["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": t["positional_embedding"],
        "visual_projection.weight": t["proj"].T.contiguous(),
    }
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        out |= {f"vision_model.{theirs}.{kind}": t[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    for layer in range(LAYERS):
        block, target = f"transformer.resblocks.{layer}.", f"vision_model.encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            q, k, v = (part.clone() for part in t[f"{block}attn.in_proj_{kind}"].chunk(3))
            out |= {f"{target}self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", (q, k, v), strict=True)}
            out[f"{target}self_attn.out_proj.{kind}"] = t[f"{block}attn.out_proj.{kind}"]
            out[f"{target}mlp.fc1.{kind}"] = t[f"{block}mlp.c_fc.{kind}"]
            out[f"{target}mlp.fc2.{kind}"] = t[f"{block}mlp.c_proj.{kind}"]
            out[f"{target}layer_norm1.{kind}"] = t[f"{block}ln_1.{kind}"]
            out[f"{target}layer_norm2.{kind}"] = t[f"{block}ln_2.{kind}"]
    return out


def facebook_names(positions: int = 1370) -> dict[str, Tensor]:
    """facebookresearch's dinov2_vitl14."""
    w, width = Weights(), 1024
    out = {
        "cls_token": w(1, 1, width),
        "mask_token": w(1, width),
        "pos_embed": w(1, positions, width),
        "patch_embed.proj.weight": w(width, 3, 14, 14),
        "patch_embed.proj.bias": w(width),
        "norm.weight": w(width, one=True),
        "norm.bias": w(width),
    }
    for layer in range(24):
        block = {
            "attn.qkv.weight": w(3 * width, width),
            "attn.qkv.bias": w(3 * width),
            "attn.proj.weight": w(width, width),
            "attn.proj.bias": w(width),
            "mlp.fc1.weight": w(4 * width, width),
            "mlp.fc1.bias": w(4 * width),
            "mlp.fc2.weight": w(width, 4 * width),
            "mlp.fc2.bias": w(width),
            "ls1.gamma": w(width, one=True),
            "ls2.gamma": w(width, one=True),
        }
        for norm in ("norm1", "norm2"):
            block |= {f"{norm}.weight": w(width, one=True), f"{norm}.bias": w(width)}
        out |= {f"blocks.{layer}.{key}": value for key, value in block.items()}
    return out


def to_hub(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in the names of facebook/dinov2-large."""
    plain = {
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    out = {new: tensors[old] for old, new in plain.items()}
    for layer in range(24):
        block, target = f"blocks.{layer}.", f"encoder.layer.{layer}."
        for kind in ("weight", "bias"):
            parts = tensors[f"{block}attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                out[f"{target}attention.attention.{name}.{kind}"] = part.clone()
            out[f"{target}attention.output.dense.{kind}"] = tensors[f"{block}attn.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{target}{name}.{kind}"] = tensors[f"{block}{name}.{kind}"]
        for number in "12":
            out[f"{target}layer_scale{number}.lambda1"] = tensors[f"{block}ls{number}.gamma"]
    return out


@pytest.fixture
def file(tmp_path: Path):
    """One file that is written over and deleted at the end: 1.3 GB at most on the disk."""
    path = tmp_path / "model.safetensors"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.rand(1, 300, 400, 3, generator=torch.Generator().manual_seed(1))


def test_vit_h_in_both_formats(file: Path, picture: Tensor) -> None:
    tensors = open_clip_names()
    save_file(tensors, file)
    encoder = load_clip(file)
    assert sum(value.numel() for value in encoder.parameters()) == 632_076_800
    first = Encoders(encoder).encode(picture, adapter=IPAdapterPlus)
    assert first.cls.shape == (1, 1024)
    assert first.patches.shape == (1, 257, 1280)
    assert first.cls.std() > 1e-3
    digest = encoder.weights_hash
    del encoder

    tensors = to_transformers(tensors)
    file.unlink()
    save_file(tensors, file)
    del tensors
    encoder = load_clip(file)
    second = Encoders(encoder).encode(picture, adapter=IPAdapterPlus)
    assert (first.cls - second.cls).abs().max() <= 1e-5
    assert (first.patches - second.patches).abs().max() <= 1e-5
    assert encoder.weights_hash == digest


def test_dinov2_l_in_both_formats_and_table_sizes(file: Path, picture: Tensor) -> None:
    from flexip_model.images.preprocess import normalize, prepare

    tensors = facebook_names()
    save_file(tensors, file)
    encoder = load_dino(file)
    assert sum(value.numel() for value in encoder.parameters()) == 304_367_616
    pixels = normalize(prepare(picture, encoder.image_size).pixels, encoder.mean, encoder.std).bfloat16()
    with torch.no_grad():
        first = encoder(pixels).float()
    assert first.shape == (1, 256, 1024)
    assert first.std() > 1e-3
    digest = encoder.weights_hash

    tensors = to_hub(tensors)
    file.unlink()
    save_file(tensors, file)
    encoder = load_dino(file)
    with torch.no_grad():
        second = encoder(pixels).float()
    assert (first - second).abs().max() <= 1e-5
    assert encoder.weights_hash == digest

    # A table for 224 px is taken as it is.
    table = tensors["embeddings.position_embeddings"][:, :257].clone()
    tensors["embeddings.position_embeddings"] = table
    file.unlink()
    save_file(tensors, file)
    encoder = load_dino(file)
    assert torch.equal(encoder.model.embeddings.position_embeddings, table)
    with torch.no_grad():
        assert encoder(pixels).shape == (1, 256, 1024)
