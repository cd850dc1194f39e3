"""Files of exact shape with random weights, written tensor by tensor: a check of sizes needs no download."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from torch import nn

from ..encoders.clip import VIT_H, ClipEncoder
from ..encoders.dino import VIT_L, DinoEncoder
from ..files.adapter_file import save_adapter
from ..method.adapters import FlexIPAdapter
from ..method.config import FlexIPConfig
from .sd15_shapes import Shapes, checkpoint_shapes


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> None:
    """Write a float16 `.safetensors`: norms' weights 1, biases 0, all else normal with 1/√fan-in.

    One tensor is in memory at a time; they are drawn on the GPU where there is one, which takes a moment.
    """
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(seed)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(random_tensor(name, shape, generator).half().cpu().numpy().data)


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A tensor of a network, float32 on the generator's device: a norm's weights 1, a bias 0, all else normal with
    1/√fan-in."""
    if len(shape) < 2:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, device=generator.device)
    return torch.randn(shape, generator=generator, device=generator.device).mul_(prod(shape[1:]) ** -0.5)


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """`random_tensor` of each name, drawn in the names' order: the same wherever device and seed are."""
    generator = torch.Generator(device).manual_seed(seed)
    for name in sorted(shapes):
        yield name, random_tensor(name, shapes[name], generator)


def write_sd15(models: Path) -> dict[str, str]:
    """Make everything that `flexip_gamma_sweep_sd15` loads, about 4.4 GB, in a models folder.

    Returns:
        The file names by the workflow's input: ckpt_name, clip_vision, dinov2, adapter_name.
    """
    files = {
        "ckpt_name": ("checkpoints", "sd15_random.safetensors"),
        "clip_vision": ("clip_vision", "vit_h_random.safetensors"),
        "dinov2": ("clip_vision", "dinov2_l_random.safetensors"),
        "adapter_name": ("flexip", "flexip_sd15_untrained.safetensors"),
    }
    paths = {key: models / folder / name for key, (folder, name) in files.items()}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    write_random(paths["ckpt_name"], checkpoint_shapes())
    write_encoders(paths["clip_vision"], paths["dinov2"])
    torch.manual_seed(0)
    config = FlexIPConfig()
    save_adapter(paths["adapter_name"], config, FlexIPAdapter(config).state_dict(), training={"trained": False})
    return {key: name for key, (_, name) in files.items()}


def write_encoders(clip_path: Path, dino_path: Path) -> None:
    """OpenCLIP ViT-H/14 (1.3 GB) and DINOv2-L/14 (0.6 GB) in their libraries' own keys."""
    with torch.device("meta"):
        clip, dino = ClipEncoder(VIT_H).visual, DinoEncoder(VIT_L).model
    write_random(clip_path, _shapes(clip))
    write_random(dino_path, _shapes(dino))


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
