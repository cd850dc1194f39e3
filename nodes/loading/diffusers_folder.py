"""A diffusers folder of SD1.5's architecture at any width, as ComfyUI's own MODEL, CLIP and VAE.

ComfyUI's loader recognizes SD1.5 by its exact sizes, so it cannot read a narrower one; these functions build ComfyUI's
own classes with the folder's sizes.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ...flexip_model.common.errors import FlexIPError
from ...flexip_model.method import sd15
from ..host import fields, load_weights, manage, reload_with

SD15_UNET = {
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
    "num_res_blocks": [sd15.LAYERS_PER_BLOCK] * 4,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
SD15_BLOCKS = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": sd15.LAYERS_PER_BLOCK,
}
PREDICTIONS = {"epsilon": comfy.model_base.ModelType.EPS, "v_prediction": comfy.model_base.ModelType.V_PREDICTION}


class UNetOfWidths(UNetModel):
    """ComfyUI's UNet of SD1.5's structure with a width of its own at each level.

    ComfyUI's constructor knows whole multiples of one width alone. So it builds the structure at the first width, and
    in it each layer gives its place to one of the same class that has its level's width. It builds every group norm
    with 32 groups, too; here they have `groups`, which divides narrow widths.
    """

    def __init__(
        self,
        *,
        channel_mult: list[float],
        model_channels: int,
        num_heads: int,
        context_dim: int,
        dtype: torch.dtype,
        device: Any,
        operations: Any,
        groups: int,
        **others: Any,
    ) -> None:
        where = {"dtype": dtype, "device": device, "operations": _with_groups(operations, groups)}
        uniform = [1] * len(channel_mult)
        super().__init__(
            channel_mult=uniform,
            model_channels=model_channels,
            num_heads=num_heads,
            context_dim=context_dim,
            **where,
            **others,
        )
        self.channel_mult = channel_mult
        widths = [round(multiple * model_channels) for multiple in channel_mult]

        def refit(block: nn.Sequential, into: int, out: int) -> None:
            for place, layer in enumerate(block):
                if isinstance(layer, ResBlock):
                    block[place] = ResBlock(into, 4 * model_channels, 0, out, **where)
                elif isinstance(layer, SpatialTransformer):
                    heads = (num_heads, out // num_heads)
                    block[place] = SpatialTransformer(
                        out, *heads, context_dim=context_dim, use_checkpoint=False, **where
                    )
                else:
                    block[place] = type(layer)(out, True, **where)  # Downsample or Upsample
                into = out

        width, skips = widths[0], [widths[0]]
        for number, block in enumerate(self.input_blocks[1:]):
            out = widths[number // 3]
            refit(block, width, out)
            width = out
            skips.append(width)
        refit(self.middle_block, width, width)
        for number, block in enumerate(self.output_blocks):
            out = widths[-1 - number // 3]
            refit(block, width + skips.pop(), out)
            width = out


def load_unet(folder: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """`unet/` as a MODEL, predicting what `scheduler/` says; not under dynamic VRAM where that is asked.

    Raises:
        FlexIPError: the UNet is not of SD1.5's structure, its tensors are not those of its config, or it predicts
            something other than ε or v.
    """
    config, tensors = _read(folder / "unet", "diffusion_pytorch_model.safetensors")
    for key, value in SD15_BLOCKS.items():
        if config[key] != value:
            raise FlexIPError(f"{folder / 'unet'} has {key} {config[key]}, SD1.5's structure has {value}")
    channels = config["block_out_channels"]
    unet_config = {
        **SD15_UNET,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": channels[0],
        # Whole where they are whole: a ControlNet of the host's is built from this config.
        "channel_mult": [
            width // channels[0] if width % channels[0] == 0 else width / channels[0] for width in channels
        ],
        "context_dim": config["cross_attention_dim"],
    }
    prediction = _json(folder / "scheduler" / "scheduler_config.json")["prediction_type"]
    if prediction not in PREDICTIONS:
        raise FlexIPError(f"{folder / 'scheduler'} has prediction_type {prediction}; expected epsilon or v_prediction")
    model_config = comfy.supported_models.SD15(unet_config)
    model_config.unet_config["num_heads"] = config["attention_head_dim"]
    load_device = comfy.model_management.get_torch_device()
    supported = list(model_config.supported_inference_dtypes)
    count = sum(tensor.numel() for tensor in tensors.values())
    dtype = comfy.model_management.unet_dtype(model_params=count, supported_dtypes=supported)
    model_config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, load_device, supported))
    unet_model = partial(UNetOfWidths, groups=config["norm_num_groups"])
    model = comfy.model_base.BaseModel(model_config, PREDICTIONS[prediction], unet_model=unet_model)
    if model_config.inpaint_model():  # as `get_model` does, which takes no class of ours
        model.set_inpaint()
    names = comfy.utils.unet_to_diffusers(model_config.unet_config)
    renamed = {names[key]: value for key, value in tensors.items() if key in names}
    if len(renamed) != len(tensors):
        raise FlexIPError(f"{folder / 'unet'} has tensors that SD1.5's UNet lacks; the folder is damaged")
    load_weights(model.diffusion_model, renamed, folder / "unet")
    offload = comfy.model_management.unet_offload_device()
    patcher = manage(model.to(offload), load_device, offload, disable_dynamic)
    reload_with(patcher, load_unet, folder)
    return patcher


def load_vae(folder: Path) -> comfy.sd.VAE:
    """`vae/` (AutoencoderKL) as a VAE.

    Raises:
        FlexIPError: its widths are not whole multiples of the first, as ComfyUI's VAE needs them.
    """
    config, tensors = _read(folder / "vae", "diffusion_pytorch_model.safetensors")
    channels = config["block_out_channels"]
    if any(width % channels[0] for width in channels):
        raise FlexIPError(f"{folder / 'vae'} has block_out_channels {channels}; expected multiples of {channels[0]}")
    sizes = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 256,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": channels[0],
        "ch_mult": [width // channels[0] for width in channels],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    vae = comfy.sd.VAE(sd=tensors, config={"params": {"ddconfig": sizes, "embed_dim": config["latent_channels"]}})
    vae.throw_exception_if_invalid()
    _set_groups(vae.first_stage_model, config["norm_num_groups"])
    reload_with(vae.patcher, _vae_patcher, folder)
    return vae


def _vae_patcher(folder: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    made = load_vae(folder).patcher
    return manage(made.model, made.load_device, made.offload_device, disable_dynamic)


def load_clip_text(folder: Path, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """`text_encoder/` and `tokenizer/` as a CLIP; not under dynamic VRAM where that is asked.

    Raises:
        FlexIPError: the text encoder's tensors are not those of its config.
    """
    config, tensors = _read(folder / "text_encoder", "model.safetensors")
    tokenizer = folder / "tokenizer"
    options: dict[str, Any] = {
        "clip_l_class": partial(
            comfy.sd1_clip.SDClipModel,
            max_length=sd15.TEXT_LENGTH,
            textmodel_json_config=config,
            special_tokens={
                "start": config["bos_token_id"],
                "end": config["eos_token_id"],
                "pad": config["eos_token_id"],
            },
            return_projected_pooled=False,
            model_class=partial(_text_model, tensors, folder / "text_encoder"),
        )
    }
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={
            "clip_l_tokenizer_class": partial(
                comfy.sd1_clip.SDTokenizer, tokenizer_path=str(tokenizer), embedding_size=config["hidden_size"]
            )
        },
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        model_options=options,
        **fields(comfy.sd.CLIP, disable_dynamic=disable_dynamic),
    )
    reload_with(clip.patcher, _text_patcher, folder)
    return clip


def _text_patcher(folder: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_clip_text(folder, disable_dynamic).patcher


def _text_model(
    tensors: dict[str, Tensor], folder: Path, config: dict[str, Any], dtype: Any, device: Any, operations: Any
) -> nn.Module:
    """ComfyUI's CLIP text model with the folder's own vocabulary, and with its weights: a host that loads a text
    encoder as soon as it is built must not find it empty."""
    model = comfy.clip_model.CLIPTextModel(config, dtype, device, operations)
    model.text_model.embeddings.token_embedding = operations.Embedding(
        config["vocab_size"], config["hidden_size"], dtype=dtype, device=device
    )
    # transformers 5 writes the names without the prefix that ComfyUI, and transformers 4, have.
    prefix = "text_model."
    named = {prefix + key.removeprefix(prefix): tensor for key, tensor in tensors.items() if "position_ids" not in key}
    # ComfyUI's text model has a projection that SD1.5's text encoder lacks; prompts do not go through it.
    named["text_projection.weight"] = torch.eye(config["hidden_size"])
    load_weights(model, named, folder)
    return model


def _read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = _json(folder / "config.json")
    if not (folder / name).is_file():
        raise FlexIPError(f"{folder / name} is missing; get the pack again, with its models")
    return config, load_file(folder / name)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FlexIPError(f"{path} is missing; get the pack again, with its models")
    return json.loads(path.read_text(encoding="utf-8"))


def _with_groups(operations: Any, groups: int) -> Any:
    """ComfyUI's layers, with so many groups in every group norm."""

    class GroupNorm(operations.GroupNorm):
        def __init__(self, num_groups: int, num_channels: int, **others: Any) -> None:
            super().__init__(groups, num_channels, **others)

    return type(operations.__name__, (operations,), {"GroupNorm": GroupNorm})


def _set_groups(module: nn.Module, groups: int) -> None:
    """ComfyUI builds every group norm with 32 groups; narrow models have fewer."""
    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            part.num_groups = groups
