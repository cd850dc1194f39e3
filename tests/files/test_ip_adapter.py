"""Imported IP-Adapter files, checked against diffusers' own IP-Adapter at SD1.5's full widths with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flexip_model.common.errors import FlexIPError
from flexip_model.encoders import Encoders, load_clip
from flexip_model.files.adapter_file import build_adapter, load_adapter_file, read_info
from flexip_model.files.ip_adapter import convert_file, convert_ip_adapter
from flexip_model.hosts.diffusers import Condition, inject
from flexip_model.method.adapters import IPAdapter, IPAdapterPlus, ReferenceFeatures
from flexip_model.method.gate import gamma_tensor

from ..support import encoder_files
from ..support.encoder_files import CLIP_SPEC, HALF
from ..support.ip_adapter_files import CHANNELS, TOKENS, plain_weights, plus_weights, save


@pytest.fixture(scope="module")
def unet():
    """SD1.5's UNet at its real widths; its weights are views of one random buffer, so it costs 120 MB, not 3.4 GB."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=CHANNELS, cross_attention_dim=TOKENS, attention_head_dim=8)
    torch.manual_seed(0)
    buffer = torch.randn(max(value.numel() for value in unet.parameters()))
    tensors = {}
    for key, value in unet.state_dict().items():
        if value.ndim == 1:
            tensors[key] = torch.ones(value.shape) if key.endswith("weight") else torch.zeros(value.shape)
        else:
            tensors[key] = buffer[: value.numel()].view(value.shape)
    unet.load_state_dict(tensors, assign=True)
    # Variance-preserving layers: each is scaled by its fan-in on the fly, which views of one buffer cannot be.
    for module in unet.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim > 1:
            gain = weight[0].numel() ** -0.5
            module.register_forward_hook(lambda _module, _inputs, out, gain=gain: out * gain)
    return unet.eval().requires_grad_(False)


def split(path: Path) -> dict[str, dict[str, Tensor]]:
    """The nested form that diffusers' loader takes."""
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in load_file(path).items():
        group, name = key.split(".", 1)
        nested[group][name] = value
    return nested


@pytest.mark.parametrize(("kind", "gammas"), [("ip-adapter", [1.0]), ("ip-adapter-plus", [1.0, 0.4])])
def test_gamma_is_the_scale_of_diffusers_ip_adapter(kind: str, gammas: list[float], unet, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = save(tmp_path / "source.safetensors", plain_weights() if kind == "ip-adapter" else plus_weights())
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, TOKENS)
    cls, hidden = torch.randn(1, 1024), torch.randn(1, 257, 1280)

    config = convert_file(source, tmp_path / "adapter.safetensors")
    assert config.kind == kind and read_info(tmp_path / "adapter.safetensors").crop == "center"
    adapter = build_adapter(*load_adapter_file(tmp_path / "adapter.safetensors"))
    with torch.no_grad():
        host = inject(unet, adapter)
        tokens = adapter.preservation(ReferenceFeatures(cls, hidden))
        results = {}
        for gamma in gammas:
            host.condition = Condition(tokens, None, gamma_tensor(gamma))
            results[gamma] = unet(latents, 500, text).sample
        host.eject()

        original = dict(unet.attn_processors)
        unet._load_ip_adapter_weights([split(source)], low_cpu_mem_usage=False)
        embeds = cls[:, None] if kind == "ip-adapter" else hidden[:, None]
        for gamma, ours in results.items():
            for processor in unet.attn_processors.values():
                if hasattr(processor, "scale"):
                    processor.scale = [gamma]
            theirs = unet(latents, 500, text, added_cond_kwargs={"image_embeds": [embeds]}).sample
            assert (ours - theirs).abs().max() <= 1e-5
    if len(gammas) > 1:
        assert (results[1.0] - results[0.4]).abs().max() > 1e-2
    unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = None, None
    unet.set_attn_processor(original)


def test_dtype_and_origin_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(2)
    weights = {key: value.half() for key, value in plain_weights().items()}
    source = save(tmp_path / "ip-adapter_sd15.safetensors", weights)
    convert_file(source, tmp_path / "out.safetensors")
    info, tensors = load_adapter_file(tmp_path / "out.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert info.training["source"] == "ip-adapter_sd15.safetensors"
    assert len(info.training["source_sha256"]) == 64
    key = "down_blocks.0.attentions.0.attn2.preservation.to_k.weight"
    assert torch.equal(tensors[key], weights["ip_adapter.1.to_k_ip.weight"])


def meta_like(weights: dict[str, Tensor], changes: dict[str, tuple[int, ...] | None]) -> dict[str, Tensor]:
    """The same keys with one-element-wide rows would not do: shapes count, so zeros in fp16."""
    kept = {key: value.shape for key, value in weights.items()}
    kept |= {key: torch.Size(shape) for key, shape in changes.items() if shape is not None}
    return {key: torch.zeros(shape, dtype=torch.float16) for key, shape in kept.items() if changes.get(key, 1)}


def refused(path: Path, weights: dict[str, Tensor]) -> str:
    save(path, weights)
    with pytest.raises(FlexIPError) as error:
        convert_ip_adapter(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_variants_are_refused_by_name(tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain, plus = plain_weights(), plus_weights()
    path = tmp_path / "ip.safetensors"
    full_face = {key: value for key, value in plain.items() if "image_proj" not in key} | {
        f"image_proj.proj.{number}.{kind}": torch.zeros(4) for number in (0, 2, 3) for kind in ("weight", "bias")
    }
    face_id = {key: value for key, value in plain.items() if "image_proj" not in key} | {
        "image_proj.proj.0.weight": torch.zeros(4),
        "image_proj.proj.2.weight": torch.zeros(4),
        "image_proj.norm.weight": torch.zeros(4),
    }
    face_id_plus = plain | {"image_proj.perceiver_resampler.proj_in.weight": torch.zeros(4)}
    sdxl = {key: torch.zeros(4, 2048) if "ip_adapter" in key else value[:1] for key, value in plain.items()}
    layers = {key: value for key, value in plain.items() if "ip_adapter.31" not in key}
    cases = {
        "Full Face": full_face,
        "FaceID,": face_id,
        "FaceID Plus": face_id_plus,
        "SDXL": sdxl,
        "15 cross-attention layers": layers,
        "ViT-bigG": meta_like(plain, {"image_proj.proj.weight": (3072, 1280)}),
        "a LoRA": {"lora_unet_down.weight": torch.zeros(4)},
        "CLIP ViT-H/14": {"visual.conv1.weight": torch.zeros(1280, 3, 14, 14, dtype=torch.float16)},
        "lacks 1 of": {key: value for key, value in plus.items() if key != "image_proj.norm_out.bias"},
        "tensors that no IP-Adapter": plus | {"image_proj.surprise": torch.zeros(1)},
        "image_proj.layers.0.0.to_kv.weight": meta_like(plus, {"image_proj.layers.0.0.to_kv.weight": (1536, 700)}),
        "damaged IP-Adapter file": {k: v for k, v in plus.items() if k != "image_proj.layers.0.0.to_q.weight"},
        "NaN": plain | {"image_proj.norm.bias": torch.full((TOKENS,), torch.nan)},
        "unquantized": plain | {"image_proj.norm.bias": torch.zeros(TOKENS, dtype=torch.int8)},
    }
    messages = {name: refused(path, weights) for name, weights in cases.items()}
    assert {name for name, message in messages.items() if name not in message} == set()
    assert len(set(messages.values())) == len(cases)


def test_null_image_is_that_of_diffusers(clip_models, tmp_path: Path) -> None:
    """The pipeline's negative image features: zeros for the plain adapter, hidden states of zero pixels for Plus."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPImageProcessor

    tower, _ = clip_models
    encoders = Encoders(load_clip(encoder_files.save(tmp_path / "clip.safetensors", tower.state_dict(), CLIP_SPEC)))

    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=None,
        scheduler=None,
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32, image_mean=HALF, image_std=HALF),
        image_encoder=tower,
        requires_safety_checker=False,
    )
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        hidden, null_hidden = pipeline.encode_image(pixels, "cpu", 1, output_hidden_states=True)
        cls, null_cls = pipeline.encode_image(pixels, "cpu", 1)
        ours = encoders.clip(pixels, hidden=True)
    assert (ours.hidden - hidden).abs().max() <= 1e-5
    assert (ours.cls - cls).abs().max() <= 1e-5
    assert (encoders.null(1, IPAdapterPlus).patches - null_hidden).abs().max() <= 1e-5
    assert torch.equal(encoders.null(1, IPAdapter).cls, null_cls)
