"""Files of other encoders, and broken ones, are refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from flexip_model.common.errors import FlexIPError
from flexip_model.encoders import load_clip, load_dino

from ..support.encoder_files import CLIP, CLIP_SPEC, DINO, DINO_SPEC, save
from ..support.helpers import damaged_headers


def sparse(path: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """A whole safetensors file of zeros that takes no disk: header, then a hole."""
    header, offset = {}, 0
    for key, shape in tensors.items():
        end = offset + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + offset)
    return path


def shapes(module: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}


def wrong_clip_files() -> dict[str, dict[str, tuple[int, ...]]]:
    """What the message must say → keys and shapes, from the libraries' own classes with one or two layers."""
    import transformers as t
    from open_clip.transformer import VisionTransformer

    def clip(width: int, size: int, out: int, image: int = 224) -> nn.Module:
        config = t.CLIPVisionConfig(
            hidden_size=width,
            patch_size=size,
            projection_dim=out,
            image_size=image,
            num_hidden_layers=1,
            num_attention_heads=16,
        )
        return t.CLIPVisionModelWithProjection(config)

    small = {"num_hidden_layers": 1, "intermediate_size": 64}
    big = VisionTransformer(224, 14, 1664, 1, 16, 4.9, output_dim=1280)
    unprojected = {key: shape for key, shape in shapes(clip(1280, 14, 1024)).items() if "projection" not in key}
    siglip = t.SiglipVisionModel(t.SiglipVisionConfig(hidden_size=1152, num_attention_heads=16, patch_size=14, **small))
    siglip2 = t.Siglip2VisionModel(t.Siglip2VisionConfig(**small))

    def vision(model: nn.Module) -> dict[str, tuple[int, ...]]:
        return {f"vision_model.{key.removeprefix('vision_model.')}": shape for key, shape in shapes(model).items()}

    return {
        "CLIP ViT-L/14 at 224 px (embeddings of 768)": shapes(clip(1024, 14, 768)),
        "CLIP ViT-L/14 at 336 px": shapes(clip(1024, 14, 768, 336)),
        "CLIP ViT-B/32": shapes(clip(768, 32, 512)),
        "CLIP ViT-bigG/14": shapes(big, "visual."),
        "CLIP ViT-H/14 at 378 px": shapes(clip(1280, 14, 1024, 378)),
        "without its projection": unprojected,
        "SigLIP (or SigLIP 2)": vision(siglip),
        "SigLIP 2;": vision(siglip2),
        "SigLIP (or SigLIP 2),": {"visual.trunk.patch_embed.proj.weight": (768, 3, 16, 16)},
        "EVA-CLIP": {"visual.blocks.0.norm1.weight": (1024,)},
        "a text encoder": {"text_model.encoder.layers.0.layer_norm1.weight": (768,)},
        **other_files(),
    }


def wrong_dino_files() -> dict[str, dict[str, tuple[int, ...]]]:
    import transformers as t

    small = {"num_hidden_layers": 1, "patch_size": 14, "image_size": 518}

    def dino(width: int, **more) -> dict[str, tuple[int, ...]]:
        return shapes(t.Dinov2Model(t.Dinov2Config(hidden_size=width, num_attention_heads=2, **small, **more)))

    registers = t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(hidden_size=1024, **small))
    third = t.DINOv3ViTModel(t.DINOv3ViTConfig(num_hidden_layers=1, num_register_tokens=4))
    first = t.ViTModel(t.ViTConfig(num_hidden_layers=1))
    return {
        "DINOv2-S/14": dino(384),
        "DINOv2-B/14": dino(768),
        "DINOv2-g/14": dino(1536, use_swiglu_ffn=True),
        "DINOv2-L/14 with registers": shapes(registers),
        "DINOv2-B/14 with registers": {
            "cls_token": (1, 1, 768),
            "register_tokens": (1, 4, 768),
            "patch_embed.proj.weight": (768, 3, 14, 14),
            "blocks.0.attn.qkv.weight": (2304, 768),
            "blocks.0.ls1.gamma": (768,),
        },
        "DINOv3": shapes(third),
        "DINO v1 or another ViT of width 768": shapes(first),
        "DINO v1 or another ViT of width 384": {"cls_token": (1, 1, 384), "blocks.0.attn.qkv.weight": (1152, 384)},
        "CLIP ViT-H/14": {"visual.conv1.weight": (1280, 3, 14, 14), "visual.proj": (1280, 1024)},
        **other_files(),
    }


def other_files() -> dict[str, dict[str, tuple[int, ...]]]:
    return {
        "an IP-Adapter": {"image_proj.latents": (1, 16, 768), "ip_adapter.1.to_k_ip.weight": (320, 768)},
        "a diffusion model": {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
        "a whole Stable Diffusion checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
        "an SDXL checkpoint": {"conditioner.embedders.0.weight": (4,), "model.diffusion_model.out.weight": (4,)},
        "a LoRA": {"lora_unet_down_blocks.lora_down.weight": (4, 320)},
        "a file without tensors": {},
        "an unknown file (its first tensor is x)": {"x": (3,)},
    }


@pytest.mark.parametrize(("load", "wrong"), [(load_clip, wrong_clip_files), (load_dino, wrong_dino_files)])
@pytest.mark.promise(8)
def test_other_models_are_refused_by_name(load, wrong, tmp_path: Path, figures) -> None:
    with torch.device("meta"):
        files = wrong()
    found = {}
    for name, tensors in files.items():
        path = sparse(tmp_path / "model.safetensors", tensors)
        with pytest.raises(FlexIPError) as error:
            load(path)
        found[name] = str(error.value)
        assert str(path) in found[name]
    assert {name: text for name, text in found.items() if name not in text} == {}
    figures.cases(8, len(found), len(files), "other models refused by name")


def broken_files(folder: Path, good: Path) -> dict[str, Path]:
    content = good.read_bytes()
    files = {
        "there is no file": (folder / "absent.safetensors", None),
        "cut short": (folder / "cut.safetensors", content[:-100]),
        "(0 bytes)": (folder / "empty.safetensors", b""),
        "(5 bytes)": (folder / "five.safetensors", b"12345"),
        "damaged safetensors header": (folder / "json.safetensors", (20).to_bytes(8, "little") + b"{" * 20),
    }
    for suffix in ("bin", "pt", "pth", "ckpt"):
        files[f"model.{suffix} is a pickle"] = (folder / f"model.{suffix}", content)
    files["zip.safetensors is a pickle"] = (folder / "zip.safetensors", b"PK\x03\x04" + bytes(200))
    files["old.safetensors is a pickle"] = (folder / "old.safetensors", b"\x80\x02}q\x00." + bytes(200))
    for path, data in files.values():
        if data is not None:
            path.write_bytes(data)
    bomb = folder / "bomb.safetensors"
    bomb.write_bytes((99 * 1024 * 1024).to_bytes(8, "little"))
    os.truncate(bomb, 100 * 1024 * 1024)
    return {name: path for name, (path, _) in files.items()} | {"over the limit": bomb}


@pytest.mark.promise(3, 5, 6)
def test_broken_files_are_refused_by_name(clip_models, tmp_path: Path) -> None:
    good = save(tmp_path / "good.safetensors", clip_models[0].state_dict(), CLIP_SPEC)
    for name, path in broken_files(tmp_path, good).items():
        for load in (load_clip, load_dino):
            with pytest.raises(FlexIPError) as error:
                load(path)
            assert name in str(error.value)
            assert str(path) in str(error.value)


@pytest.mark.promise(7)
def test_right_model_with_wrong_content_is_refused(clip_models, dino_model, tmp_path: Path) -> None:
    clip, dino = dict(clip_models[0].state_dict()), dict(dino_model.state_dict())
    first, norm = "vision_model.encoder.layers.1.mlp.fc1.weight", "layernorm.weight"
    path = tmp_path / "wrong.safetensors"
    cases = {
        "lacks 1 of": (load_clip, {key: value for key, value in clip.items() if key != first}),
        "1 tensors too many": (load_clip, clip | {"vision_model.extra.weight": torch.ones(1)}),
        f"{first} has shape [32, 128]": (load_clip, clip | {first: clip[first].T.contiguous()}),
        "NaN": (load_dino, dino | {norm: torch.full((36,), torch.nan)}),
        "unquantized": (load_dino, dino | {norm: torch.ones(36, dtype=torch.int8)}),
        "encoder.layer.1.layer_scale2": (load_dino, {k: v for k, v in dino.items() if "1.layer_scale2" not in k}),
    }
    for text, (load, tensors) in cases.items():
        with pytest.raises(FlexIPError) as error:
            load(save(path, tensors, CLIP_SPEC if load is load_clip else DINO_SPEC))
        assert text in str(error.value)
    metadata = {
        "of the family dinov2, but one of open_clip": DINO_SPEC,
        "damaged metadata": {"family": "open_clip"},
        "out of range": CLIP_SPEC | {"std": [0.0, 1.0, 1.0]},
        "refuses": CLIP_SPEC | {"config": CLIP | {"depth": 3}},
        "layers is 1000000, expected at most": CLIP_SPEC | {"config": CLIP | {"layers": 10**6}},
    }
    for text, spec in metadata.items():
        with pytest.raises(FlexIPError) as error:
            load_clip(save(path, clip, spec))
        assert text in str(error.value)
    with pytest.raises(FlexIPError, match="Dinov2Config refuses"):
        load_dino(save(path, dino, DINO_SPEC | {"config": DINO | {"hidden_size": "wide"}}))
    with pytest.raises(FlexIPError, match="num_hidden_layers is 1000000, expected at most"):
        load_dino(save(path, dino, DINO_SPEC | {"config": DINO | {"num_hidden_layers": 10**6}}))


@pytest.mark.promise(5, seed=0)
def test_mutated_files_load_or_are_refused(clip_models, tmp_path: Path) -> None:
    good = save(tmp_path / "good.safetensors", clip_models[0].state_dict(), CLIP_SPEC).read_bytes()
    path = tmp_path / "mutated.safetensors"
    refused = 0
    for data in damaged_headers(good, 150, 4):
        path.write_bytes(data)
        try:
            load_clip(path)
        except FlexIPError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 100
