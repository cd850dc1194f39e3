"""Encoders at tiny sizes against the libraries' own models, and what an encode gives."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flexip_model.common.errors import FlexIPError
from flexip_model.encoders import Encoders, check_encoders, load_clip, load_dino
from flexip_model.images.preprocess import normalize, prepare
from flexip_model.method.adapters import IPAdapterPlus
from flexip_model.method.config import FlexIPConfig

from ..support.encoder_files import CLIP_SPEC, DINO_SPEC, HALF, save


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


@pytest.mark.promise(44)
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
    plus = encoders.encode(image, mask, adapter=IPAdapterPlus)
    assert plus.patches.shape == (1, 17, 32)
    assert plus.keep.sum() == 1 + 4  # [CLS] and the 2 × 2 of 4 × 4 patches on the subject
    assert encoders.preview(encoders.look(image, mask)).shape == (1, 28, 28, 3)


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
