"""A whole tiny system in the layout of `models/demo`, random weights: the real classes at tiny sizes."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import torch

from flexip_model.files.adapter_file import save_adapter
from flexip_model.hosts.base import load_parts
from flexip_model.images.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD

from .helpers import tiny_adapter, tiny_config, tiny_unet
from .paths import SHIPPED

SIZE = 28


def write_tokenizer(folder: Path) -> int:
    """A CLIP tokenizer of single characters; returns its vocabulary's size, the last entry ends and pads."""
    letters = [*string.ascii_lowercase, *string.digits, ",", "."]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    names = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    settings = {**names, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(words)


def write_encoders(folder: Path) -> None:
    from open_clip.transformer import VisionTransformer
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    folder.mkdir(parents=True)
    clip = {"image_size": SIZE, "patch_size": 14, "width": 32, "layers": 2, "heads": 2, "mlp_ratio": 2.0}
    clip["output_dim"] = tiny_config().clip_width
    dino = {"image_size": SIZE, "patch_size": 14, "hidden_size": tiny_config().retrieval_width}
    dino.update(num_hidden_layers=2, num_attention_heads=2)
    towers = (
        ("clip_vision", "open_clip", clip, VisionTransformer(**clip), CLIP_MEAN, CLIP_STD),
        ("dinov2", "dinov2", dino, Dinov2Model(Dinov2Config(**dino)), IMAGENET_MEAN, IMAGENET_STD),
    )
    for name, family, config, module, mean, std in towers:
        spec = {"family": family, "config": config, "image_size": SIZE, "mean": mean, "std": std}
        tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"flexip.encoder": json.dumps(spec)})


def write_system(folder: Path, seed: int = 0) -> Path:
    """Write everything; returns the folder."""
    from diffusers import AutoencoderKL, DDPMScheduler
    from PIL import Image
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    vocabulary = write_tokenizer(folder / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=tiny_config().text_width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )
    # ComfyUI keeps text encoders in half precision, so the weights are numbers that it holds exactly.
    text.half().float().save_pretrained(folder / "text_encoder")
    DDPMScheduler(prediction_type="epsilon").save_pretrained(folder / "scheduler")
    AutoencoderKL(
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    ).save_pretrained(folder / "vae")
    tiny_unet(seed).save_pretrained(folder / "unet")
    write_encoders(folder / "encoders")
    adapter = tiny_adapter(seed)
    save_adapter(
        folder / "flexip_demo.safetensors",
        adapter.config,
        adapter.state_dict(),
        training={"trained": True},
        dtype=torch.float32,
    )
    (folder / "examples").mkdir()
    Image.linear_gradient("L").convert("RGB").resize((48, 40)).save(folder / "examples" / "gradient.png")
    return folder


def write_configs(system: Path, folder: Path) -> Path:
    """The configs and the tokenizer of a system without its weights; returns the folder."""
    shutil.copytree(system, folder, ignore=shutil.ignore_patterns("*.safetensors", "encoders"))
    (folder / "model_index.json").write_text((SHIPPED / "model_index.json").read_text())
    return folder


def write_single_file(system: Path, path: Path) -> Path:
    """A system as a checkpoint in Stability's key layout, by ComfyUI's own tables, which must be there; returns it."""
    from comfy.diffusers_convert import convert_vae_state_dict
    from comfy.utils import unet_to_diffusers
    from safetensors.torch import save_file

    base = load_parts(system, local_files_only=True)
    sizes = {"num_res_blocks": [2] * 4, "channel_mult": [1] * 4, "transformer_depth": [1] * 6 + [0] * 2}
    sizes |= {"transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1}
    names = unet_to_diffusers(sizes)
    tensors = {f"model.diffusion_model.{names[k]}": v for k, v in base["unet"].state_dict().items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in convert_vae_state_dict(base["vae"].state_dict()).items()}
    for key, value in base["text_encoder"].state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path
