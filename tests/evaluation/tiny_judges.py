"""The metrics' real models at tiny sizes, random weights, in the folders that `--weights` names."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..data.caption.tiny_captioners import write_qwen2_vl
from ..support.tiny_system import write_tokenizer

SIDE = 32


def write_clip(folder: Path, width: int = 24) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    vocabulary = write_tokenizer(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": vocabulary},
        vision_config={**small, "image_size": SIDE, "patch_size": 8},
        projection_dim=width,
    )
    spread(CLIPModel(config)).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPImageProcessor(**sizes).save_pretrained(folder)
    return folder


def write_dino(folder: Path) -> Path:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
    )
    spread(ViTModel(config, add_pooling_layer=False)).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def write_detector(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.?"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    plain = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.normalizer = normalizers.BertNormalizer()
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = BertTokenizerFast(tokenizer_object=plain, model_max_length=64)
    torch.manual_seed(2)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=2,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
        max_text_len=64,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    processor = GroundingDinoImageProcessor(size={"shortest_edge": 160, "longest_edge": 200})
    GroundingDinoProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def write_sam(folder: Path) -> Path:
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(3)
    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "mlp_dim": 16,
            "window_size": 2,
            "global_attn_indexes": [0],
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    SamModel(config).save_pretrained(folder)
    SamProcessor(SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})).save_pretrained(
        folder
    )
    return folder


def write_clip_rn50(folder: Path) -> Path:
    from open_clip.model import CLIP

    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(4)
    model = CLIP(**config)
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def write_aesthetic(path: Path, width: int = 24) -> Path:
    torch.manual_seed(5)
    sizes = [width, 8, 1]
    tensors = {}
    for place, (a, b) in enumerate(pairwise(sizes)):
        tensors[f"layers.{2 * place}.weight"] = torch.randn(b, a)
        tensors[f"layers.{2 * place}.bias"] = torch.full((b,), 2.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def write_image_reward(folder: Path) -> Path:
    """Random weights under the published names, which are written down here by hand."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    plain = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    BertTokenizerFast(tokenizer_object=plain).save_pretrained(folder)
    torch.manual_seed(6)
    width, inner, patches = 64, 48, 16
    sizes = {
        "blip.visual_encoder.cls_token": (1, 1, width),
        "blip.visual_encoder.pos_embed": (1, patches + 1, width),
        "blip.visual_encoder.patch_embed.proj.weight": (width, 3, 8, 8),
        "blip.visual_encoder.patch_embed.proj.bias": (width,),
        **linear("blip.visual_encoder.blocks.0.attn.qkv", 3 * width, width),
        **linear("blip.visual_encoder.blocks.0.attn.proj", width, width),
        **linear("blip.visual_encoder.blocks.0.mlp.fc1", inner, width),
        **linear("blip.visual_encoder.blocks.0.mlp.fc2", width, inner),
        **norm("blip.visual_encoder.blocks.0.norm1", width),
        **norm("blip.visual_encoder.blocks.0.norm2", width),
        **norm("blip.visual_encoder.norm", width),
        "blip.text_encoder.embeddings.position_ids": (1, 40),
        "blip.text_encoder.embeddings.word_embeddings.weight": (len(words), width),
        "blip.text_encoder.embeddings.position_embeddings.weight": (40, width),
        **norm("blip.text_encoder.embeddings.LayerNorm", width),
        **linear("blip.vision_proj", 8, width),
        **linear("mlp.layers.0", 16, width),
        **linear("mlp.layers.2", 1, 16),
    }
    for kind in ("attention", "crossattention"):
        place = f"blip.text_encoder.encoder.layer.0.{kind}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            sizes |= linear(f"{place}.{name}", width, width)
        sizes |= norm(f"{place}.output.LayerNorm", width)
    sizes |= linear("blip.text_encoder.encoder.layer.0.intermediate.dense", inner, width)
    sizes |= linear("blip.text_encoder.encoder.layer.0.output.dense", width, inner)
    sizes |= norm("blip.text_encoder.encoder.layer.0.output.LayerNorm", width)
    save_file({key: torch.randn(size) * 0.2 for key, size in sizes.items()}, folder / "model.safetensors")
    return folder


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def write_judges(folder: Path) -> dict[str, Path]:
    """Everything, by role."""
    return {
        "clip": write_clip(folder / "clip"),
        "dino": write_dino(folder / "dino"),
        "detector": write_detector(folder / "detector"),
        "sam": write_sam(folder / "sam"),
        "clip-rn50": write_clip_rn50(folder / "rn50"),
        "clip-l": write_clip(folder / "clip-l"),
        "aesthetic": write_aesthetic(folder / "aesthetic.safetensors"),
        "image-reward": write_image_reward(folder / "image-reward"),
        "judge": write_qwen2_vl(folder / "judge"),
    }


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that pictures differ in what comes out."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return model
