"""The tiny system inside a real ComfyUI: models, prompts, and one look at what the diffusion model gives."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from flexip_model.method.adapters import ReferenceFeatures

from .helpers import tiny_config, tiny_features

CLOSE = 1e-5


def difference(a: Any, b: Any) -> float:
    """The largest over pairs of tensors."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def prompt(clip: Any, text: str) -> Any:
    """A conditioning, from ComfyUI's own node."""
    return importlib.import_module("nodes").CLIPTextEncode().encode(clip, text)[0]


@dataclass
class Call:
    """One forward of the diffusion model: what went in and out, and how ComfyUI laid the conds out."""

    x: Tensor
    timesteps: Tensor
    context: Tensor
    out: Tensor
    conds: list[int]
    active: bool

    def of(self, cond: int) -> Tensor:
        """The output of one cond: 0 positive, 1 negative."""
        return self.out.chunk(len(self.conds))[self.conds.index(cond)]


class Rig:
    """Models and helpers; every method that samples runs ComfyUI's own guider."""

    def __init__(self, pack: ModuleType, folder: Path) -> None:
        self.pack, self.folder = pack, folder
        self.model = self.part("nodes.loading.diffusers_folder").load_unet(folder)
        files = self.part("flexip_model.files.adapter_file")
        info, tensors = files.load_adapter_file(folder / "flexip_demo.safetensors")
        self.info, self.tensors = info, tensors
        self.adapter = self.part("nodes.wires").manage_adapter(info, tensors, "tiny")

    def with_tensors(self, tensors: dict[str, Tensor], config: Any = None) -> Rig:
        """A rig whose adapter has other weights (and sizes) on the same model."""
        other = copy.copy(self)
        info = self.info if config is None else dataclasses.replace(self.info, config=config)
        other.adapter = self.part("nodes.wires").manage_adapter(info, tensors, "other")
        return other

    def part(self, name: str) -> ModuleType:
        """A module of the pack as ComfyUI loaded it."""
        return importlib.import_module(f"{self.pack.__name__}.{name}")

    def text(self, tokens: int = 77, seed: int = 0, batch: int = 1) -> Tensor:
        return torch.randn(batch, tokens, tiny_config().text_width, generator=torch.Generator().manual_seed(seed))

    def features(self, batch: int = 1, seed: int = 1) -> ReferenceFeatures:
        return tiny_features(tiny_config(), batch, patches=4, seed=seed)

    def encode(self, positive: Any, negative: Any, features: ReferenceFeatures | None = None) -> tuple[Any, Any]:
        """Both conditionings with P and S, as FlexIP Encode Reference makes them from these features."""
        encode = self.part("nodes.encode")
        found = features or self.features()
        null = ReferenceFeatures(torch.zeros_like(found.cls[:1]), torch.zeros_like(found.patches[:1]))
        embeds = encode.embed(self.adapter, found, null)
        return (
            encode.attach(self.adapter, positive, embeds.preservation, embeds.cls),
            encode.attach(self.adapter, negative, embeds.null, null.cls),
        )

    def prompts(self, tokens: int = 77, negative_tokens: int | None = None) -> tuple[Any, Any]:
        """A positive and a negative conditioning without tokens."""
        return [[self.text(tokens, 5), {}]], [[self.text(negative_tokens or tokens, 6), {}]]

    def apply(self, gamma: Any = 0.5, model: Any = None, **settings: Any) -> Any:
        applied, gate = self.part("nodes.patch.applied").Applied, self.part("flexip_model.method.gate")
        return self.part("nodes.patch.apply").apply_adapter(
            model or self.model, applied(self.adapter, gate.gamma_tensor(gamma), **settings)
        )

    def calls(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        batch: int = 1,
        sigmas: Any = (5.0, 0.0),
        size: Any = (8, 8),
        cfg: float = 7.5,
        callback: Any = None,
    ) -> list[Call]:
        """Run ComfyUI's guider with plain Euler steps and record each forward of the diffusion model."""
        samplers = importlib.import_module("comfy.samplers")
        patcher_extension = importlib.import_module("comfy.patcher_extension")
        seen: list[Call] = []

        def record(executor: Any, x: Tensor, t: Tensor, context: Tensor, y: Any, c: Any, o: dict, **kwargs: Any) -> Any:
            out = executor(x, t, context, y, c, o, **kwargs)
            slots = o.get("patches_replace", {}).get("attn2", {})
            active = any(isinstance(patch, self.part("nodes.patch.site_patch").SitePatch) for patch in slots.values())
            seen.append(Call(x.clone(), t.clone(), context.clone(), out.clone(), list(o["cond_or_uncond"]), active))
            return out

        model = model.clone()
        model.add_wrapper_with_key(patcher_extension.WrappersMP.DIFFUSION_MODEL, "record", record)
        noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(2)).repeat(batch, 1, 1, 1)
        with torch.inference_mode():
            samplers.sample(
                model,
                noise,
                positive,
                negative,
                cfg,
                model.load_device,
                samplers.ksampler("euler"),
                torch.tensor(sigmas),
                model_options=model.model_options,
                latent_image=torch.zeros_like(noise),
                callback=callback,
                disable_pbar=True,
                seed=0,
            )
        return seen

    def predict(self, model: Any, positive: Any, negative: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        """The noise predicted for the positive and for the negative prompt in one step."""
        calls = self.calls(model, positive, negative, **settings)
        return tuple(next(call for call in calls if cond in call.conds).of(cond) for cond in (0, 1))
