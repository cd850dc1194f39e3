"""Encoders at tiny sizes against the libraries' own models; what an encode gives; every wrong file by its name."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flexip_model.config import FlexIPConfig
from flexip_model.encoders import Encoders, check_encoders, load_clip, load_dino
from flexip_model.errors import FlexIPError
from flexip_model.preprocess import normalize, prepare

HALF = [0.5, 0.5, 0.5]
CLIP = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_ratio": 4.0, "output_dim": 24}
DINO = {"image_size": 42, "patch_size": 14, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3}
CLIP_SPEC = {"family": "open_clip", "config": CLIP, "image_size": 32, "mean": HALF, "std": HALF}
DINO_SPEC = {"family": "dinov2", "config": DINO, "image_size": 28, "mean": HALF, "std": HALF}


def save(path: Path, tensors: Mapping[str, Tensor], spec: dict | None = None) -> Path:
    metadata = None if spec is None else {"flexip.encoder": json.dumps(spec)}
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, path, metadata=metadata)
    return path


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


def scramble(module: nn.Module) -> nn.Module:
    """Every parameter random, norms and layer scales too, so that a wrong mapping shows."""
    for value in module.parameters():
        nn.init.normal_(value, 0.1, 0.2)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip_models():
    """transformers' tower and open_clip's with the same weights, put there by hand."""
    from open_clip.transformer import VisionTransformer
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    theirs = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            projection_dim=24,
            hidden_act="gelu",
        )
    )
    return scramble(theirs), VisionTransformer(**CLIP)


@pytest.fixture(scope="module")
def dino_model():
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    return scramble(Dinov2Model(Dinov2Config(**DINO)))


@pytest.fixture(scope="module")
def encoders(clip_models, dino_model, tmp_path_factory) -> Encoders:
    folder = tmp_path_factory.mktemp("encoders")
    clip = save(folder / "clip.safetensors", clip_models[0].state_dict(), CLIP_SPEC)
    dino = save(folder / "dino.safetensors", dino_model.state_dict(), DINO_SPEC)
    return Encoders(load_clip(clip), load_dino(dino))


def test_clip_formats_give_what_transformers_gives(clip_models, tmp_path: Path) -> None:
    theirs, _ = clip_models
    text = {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.ones(())}
    positions = {"vision_model.embeddings.position_ids": torch.arange(17)}
    own = load_clip(save(tmp_path / "a.safetensors", theirs.state_dict(), CLIP_SPEC))
    tower = own.visual.state_dict()
    open_clip_text = {"transformer.resblocks.0.ln_1.weight": torch.ones(4), "token_embedding.weight": torch.ones(4, 4)}
    files = {
        "transformers vision": theirs.state_dict(),
        "transformers whole": theirs.state_dict() | text | positions,
        "open_clip visual": tower,
        "open_clip whole": {f"visual.{key}": value for key, value in tower.items()} | open_clip_text,
    }
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = theirs(pixels, output_hidden_states=True)
        for name, tensors in files.items():
            encoder = load_clip(save(tmp_path / "clip.safetensors", tensors, CLIP_SPEC))
            found = encoder(pixels, hidden=True)
            assert (found.cls - wanted.image_embeds).abs().max() <= 1e-5, name
            assert (found.hidden - wanted.hidden_states[-2]).abs().max() <= 1e-5, name
            assert torch.allclose(encoder(pixels).cls, found.cls, atol=1e-6)
            assert encoder(pixels).hidden is None
            assert encoder.weights_hash == own.weights_hash


def test_open_clip_class_reads_the_converted_tower(clip_models, tmp_path: Path) -> None:
    theirs, open_clip_tower = clip_models
    encoder = load_clip(save(tmp_path / "clip.safetensors", theirs.state_dict(), CLIP_SPEC))
    open_clip_tower.load_state_dict(encoder.visual.state_dict())
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert (open_clip_tower.eval()(pixels) - theirs(pixels).image_embeds).abs().max() <= 1e-5


def to_facebook(model: nn.Module) -> dict[str, Tensor]:
    """The names of facebookresearch/dinov2 for the weights of transformers' model."""
    state = {
        key.replace("attention.attention.query", "attention.q_proj")
        .replace("attention.attention.key", "attention.k_proj")
        .replace("attention.attention.value", "attention.v_proj")
        .replace("attention.output.dense", "attention.o_proj"): value
        for key, value in model.state_dict().items()
    }
    out = {
        "cls_token": state["embeddings.cls_token"],
        "mask_token": state["embeddings.mask_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for layer in range(model.config.num_hidden_layers):
        block, source = f"blocks.{layer}.", f"encoder.layer.{layer}."
        for kind in ("weight", "bias"):
            joined = [state[f"{source}attention.{x}_proj.{kind}"] for x in "qkv"]
            out[f"{block}attn.qkv.{kind}"] = torch.cat(joined)
            out[f"{block}attn.proj.{kind}"] = state[f"{source}attention.o_proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{block}{name}.{kind}"] = state[f"{source}{name}.{kind}"]
        for number in "12":
            out[f"{block}ls{number}.gamma"] = state[f"{source}layer_scale{number}.lambda1"]
    return out


def test_dino_formats_give_what_transformers_gives(dino_model, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    dino_model.save_pretrained(tmp_path / "hub")
    facebook = to_facebook(dino_model)
    hub = load_file(tmp_path / "hub" / "model.safetensors")
    assert any("attention.attention.query" in key for key in hub)
    files = {
        "the Hub's names": hub,
        "the modules' names": dino_model.state_dict(),
        "in a classifier": {f"dinov2.{key}": value for key, value in hub.items()} | {"classifier.bias": torch.ones(3)},
        "facebookresearch": facebook,
        "timm": {key: value for key, value in facebook.items() if key != "mask_token"},
    }
    pixels = torch.randn(2, 3, 28, 28)
    hashes = set()
    with torch.no_grad():
        # 2 × 2 patches with a position table of 3 × 3: interpolated
        wanted = dino_model(pixels).last_hidden_state[:, 1:]
        for name, tensors in files.items():
            encoder = load_dino(save(tmp_path / "dino.safetensors", tensors, DINO_SPEC))
            assert (encoder(pixels) - wanted).abs().max() <= 1e-5, name
            hashes.add(encoder.weights_hash)
    assert wanted.shape == (2, encoder.tokens, encoder.width)
    assert len(hashes) == 1


def test_hash_tells_weights_apart_and_not_dtypes(clip_models, tmp_path: Path) -> None:
    state = {key: value.bfloat16() for key, value in clip_models[0].state_dict().items()}
    in_float = {key: value.float() for key, value in state.items()}
    trained = {key: value + 0.01 for key, value in in_float.items()}
    found = [load_clip(save(tmp_path / "c.safetensors", t, CLIP_SPEC)).weights_hash for t in (state, in_float, trained)]
    assert found[0] == found[1] != found[2]


def test_both_encoders_see_the_same_region(encoders: Encoders) -> None:
    image = torch.rand(2, 50, 80, 3)
    features = encoders.encode(image)
    with torch.no_grad():
        for size, encoder, found in ((32, encoders.clip, features.cls), (28, encoders.dino, features.patches)):
            wanted = encoder(normalize(prepare(image[:, :, 15:65], size).pixels, HALF, HALF))
            assert torch.allclose(wanted if isinstance(wanted, Tensor) else wanted.cls, found, atol=1e-6)
    assert features.keep is None


def test_mask_and_padding_drop_patches(encoders: Encoders) -> None:
    image, mask = torch.rand(1, 56, 56, 3), torch.zeros(1, 56, 56)
    mask[:, :28, :28] = 1
    assert encoders.encode(image, mask).keep.tolist() == [[True, False, False, False]]
    everything = encoders.encode(image, torch.ones(1, 56, 56))
    plain = encoders.encode(image)
    assert everything.keep is None
    assert torch.equal(everything.cls, plain.cls)
    assert torch.equal(everything.patches, plain.patches)
    plus = encoders.encode(image, mask, kind="ip-adapter-plus")
    assert plus.patches.shape == (1, 17, 32)
    assert plus.keep.sum() == 1 + 4  # [CLS] and the 2 × 2 of 4 × 4 patches on the subject
    assert encoders.preview(image, mask).shape == (1, 28, 28, 3)


def test_modules_may_be_cast_by_the_caller(clip_models, dino_model, tmp_path: Path) -> None:
    clip = load_clip(save(tmp_path / "c.safetensors", clip_models[0].state_dict(), CLIP_SPEC))
    dino = load_dino(save(tmp_path / "d.safetensors", dino_model.state_dict(), DINO_SPEC))
    image = torch.rand(1, 40, 40, 3)
    exact = Encoders(clip, dino).encode(image)
    rough = Encoders(clip.bfloat16(), dino.bfloat16()).encode(image)
    for a, b in zip(exact[:2], rough[:2], strict=True):
        assert b.dtype == torch.float32
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999


def test_nothing_is_asked_of_the_network(clip_models, dino_model, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_arguments, **_options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_clip(save(tmp_path / "c.safetensors", clip_models[0].state_dict(), CLIP_SPEC))
    load_dino(save(tmp_path / "d.safetensors", dino_model.state_dict(), DINO_SPEC))


def test_widths_that_do_not_fit_the_adapter(encoders: Encoders) -> None:
    clip, dino = encoders.clip, encoders.dino
    check_encoders(FlexIPConfig(clip_width=24, retrieval_width=36), clip, dino)
    check_encoders(FlexIPConfig(kind="ip-adapter", clip_width=24), clip, None)
    check_encoders(FlexIPConfig(kind="ip-adapter-plus", retrieval_width=32), clip, None)
    cases = [
        (FlexIPConfig(retrieval_width=36), dino, "24 wide and the adapter (flexip) reads 1024"),
        (FlexIPConfig(clip_width=24), dino, "36 wide and the adapter (flexip) reads 1024"),
        (FlexIPConfig(kind="ip-adapter-plus", retrieval_width=1280), None, "32 wide"),
        (FlexIPConfig(clip_width=24, retrieval_width=36), None, "needs a DINO encoder"),
    ]
    for config, second, text in cases:
        with pytest.raises(FlexIPError) as error:
            check_encoders(config, clip, second)
        assert text in str(error.value)


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
def test_other_models_are_refused_by_name(load, wrong, tmp_path: Path) -> None:
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


def test_broken_files_are_refused_by_name(clip_models, tmp_path: Path) -> None:
    good = save(tmp_path / "good.safetensors", clip_models[0].state_dict(), CLIP_SPEC)
    for name, path in broken_files(tmp_path, good).items():
        for load in (load_clip, load_dino):
            with pytest.raises(FlexIPError) as error:
                load(path)
            assert name in str(error.value)
            assert str(path) in str(error.value)


def test_right_model_with_wrong_content_is_refused(clip_models, dino_model, tmp_path: Path) -> None:
    clip, dino = dict(clip_models[0].state_dict()), dict(dino_model.state_dict())
    first, norm = "vision_model.encoder.layers.1.mlp.fc1.weight", "layernorm.weight"
    path = tmp_path / "wrong.safetensors"
    cases = {
        "lacks 1 of": (load_clip, {key: value for key, value in clip.items() if key != first}),
        "1 tensors too many": (load_clip, clip | {"vision_model.extra.weight": torch.ones(1)}),
        f"{first} has shape [32, 128]": (load_clip, clip | {first: clip[first].T.contiguous()}),
        "NaN": (load_dino, dino | {norm: torch.full((36,), torch.nan)}),
        "unquantised": (load_dino, dino | {norm: torch.ones(36, dtype=torch.int8)}),
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


def test_mutated_files_load_or_are_refused(clip_models, tmp_path: Path) -> None:
    good = save(tmp_path / "good.safetensors", clip_models[0].state_dict(), CLIP_SPEC).read_bytes()
    length = 8 + int.from_bytes(good[:8], "little")
    generator = random.Random(0)
    path = tmp_path / "mutated.safetensors"
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(length)] = generator.randrange(256)
        path.write_bytes(data)
        try:
            load_clip(path)
        except FlexIPError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 100
