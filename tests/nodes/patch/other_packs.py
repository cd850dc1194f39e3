"""Stand-ins for packs that lay a batch out in their own way, or run the model in their own way; each as the real one.

Each takes a model and gives a clone. What they are after: tiles in one batch (TiledDiffusion), windows of frames
(AnimateDiff-Evolved), a prompt per region inside the layer (attention couple of ppm and prompt-control), negative keys
(NAG), a network run by the pack itself (DeepCache), a patch set during the forward, the layers' attention taken over.
"""

from __future__ import annotations

import importlib
import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor


def _wrappers() -> Any:
    return importlib.import_module("comfy.patcher_extension").WrappersMP


def _repeat(tensor: Tensor, count: int) -> Tensor:
    """As often as needed along the rows."""
    return tensor.repeat(math.ceil(count / len(tensor)), *[1] * (tensor.ndim - 1))[:count]


def tiled(model: Any, together: int) -> Any:
    """The left and the right half of the latent, `together` of them in a batch: tiles outside, conds inside."""
    model = model.clone()

    def run(model_function: Any, given: dict[str, Any]) -> Tensor:
        x, t, c = given["input"], given["timestep"], given["c"]
        half = x.shape[-1] // 2
        halves, out = [x[..., :half], x[..., half:]], []
        for first in range(0, 2, together):
            batch = torch.cat(halves[first : first + together])
            cut = {k: _repeat(v, len(batch)) if isinstance(v, Tensor) else v for k, v in c.items()}
            out += model_function(batch, _repeat(t, len(batch)), **cut).split(len(x))
        return torch.cat(out, dim=-1)

    model.set_model_unet_function_wrapper(run)
    return model


def windowed(model: Any, windows: list[list[int]]) -> Any:
    """Frames in windows that do not overlap; whatever has as many rows as there are frames is cut likewise."""
    model = model.clone()

    def resized(group: list[dict], frames: int, window: list[int]) -> list[dict]:
        out = []
        for cond in group:
            conds = dict(cond["model_conds"])
            for key, one in conds.items():
                if isinstance(one.cond, Tensor) and len(one.cond) == frames:
                    conds[key] = one._copy_with(one.cond[window])
            out.append({**cond, "model_conds": conds})
        return out

    def run(executor: Any, inner: Any, conds: list, x: Tensor, t: Tensor, options: dict) -> list[Tensor]:
        out = [torch.zeros_like(x) for _ in conds]
        for window in windows:
            options["transformer_options"]["ad_params"] = {"sub_idxs": window, "full_length": len(x)}
            part = [None if group is None else resized(group, len(x), window) for group in conds]
            for whole, piece in zip(out, executor(inner, part, x[window], t[window], options), strict=True):
                whole[window] = piece
        return out

    model.add_wrapper_with_key(_wrappers().CALC_COND_BATCH, "windows", run)
    return model


def coupled(model: Any, regions: list[Tensor], split: bool = True) -> Any:
    """Rows of each positive prompt once more for each region's text; the mean of them comes out.

    `split=False` repeats and joins again in one place, which leaves no trace of which row came from where.
    """
    model = model.clone()
    many = 1 + len(regions)

    def kinds(options: dict) -> list[int]:
        return options["cond_or_uncond"]

    def repeat(q: Tensor, k: Tensor, v: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        qs, ks = [], []
        chunks = zip(q.chunk(len(kinds(options))), k.chunk(len(kinds(options))), kinds(options), strict=True)
        for q_part, k_part, kind in chunks:
            qs.append(q_part if kind else q_part.repeat(many, 1, 1))
            ks += [k_part] if kind else [k_part, *(region.to(k).expand_as(k_part) for region in regions)]
        keys = torch.cat(ks)
        return (torch.cat(qs) if split else torch.cat(qs) + torch.randn(1)), keys, keys

    def join(out: Tensor, options: dict) -> Tensor:
        rows = len(out) // sum(1 if kind else many for kind in kinds(options))
        joined = []
        for kind in kinds(options):
            part, out = out[: rows * (1 if kind else many)], out[rows * (1 if kind else many) :]
            joined.append(part if kind else part.unflatten(0, (many, rows)).mean(0))
        return torch.cat(joined)

    model.set_model_attn2_patch(repeat)
    model.set_model_attn2_output_patch(join)
    return model


def negative_keys(model: Any, context: Tensor) -> Any:
    """One more row of keys than of queries, and the layers' own forward replaced while the network runs."""
    model = model.clone()

    def run(executor: Any, x: Tensor, t: Tensor, text: Tensor, *given: Any, **kwargs: Any) -> Tensor:
        layers = [m for name, m in executor.class_obj.named_modules() if name.endswith("attn2")]
        for layer in layers:
            layer.forward = MethodType(guided, layer)
        try:
            return executor(x, t, torch.cat([text, context.to(text)]), *given, **kwargs)
        finally:
            for layer in layers:
                del layer.forward

    def guided(self: Any, x: Tensor, context: Tensor, value: Any = None, **kwargs: Any) -> Tensor:
        plain = type(self).forward(self, x, context[: len(x)], **kwargs)
        return plain * 1.5 - type(self).forward(self, x, context[len(x) :].expand(len(x), -1, -1), **kwargs) * 0.5

    model.add_wrapper_with_key(_wrappers().DIFFUSION_MODEL, "negative keys", run)
    return model


def own_network_run(model: Any) -> Any:
    """The function around the model runs the network's blocks by itself, and nothing that is put around the model."""
    model = model.clone()
    base = model.model

    def own_run(model_function: Any, given: dict[str, Any]) -> Tensor:
        x, sigma, c = given["input"], given["timestep"], given["c"]
        blocks = importlib.import_module("comfy.ldm.modules.diffusionmodules.openaimodel")
        net, options = base.diffusion_model, dict(c["transformer_options"])
        h = base.model_sampling.calculate_input(sigma, x).to(base.get_dtype())
        t = base.model_sampling.timestep(sigma).float()
        emb = net.time_embed(blocks.timestep_embedding(t, net.model_channels).to(h.dtype))
        options["original_shape"], skips = list(h.shape), []
        for number, block in enumerate(net.input_blocks):
            options["block"] = ("input", number)
            h = blocks.forward_timestep_embed(block, h, emb, c["c_crossattn"], options)
            skips.append(h)
        options["block"] = ("middle", 0)
        h = blocks.forward_timestep_embed(net.middle_block, h, emb, c["c_crossattn"], options)
        for number, block in enumerate(net.output_blocks):
            options["block"] = ("output", number)
            h = torch.cat([h, skips.pop()], dim=1)
            shape = skips[-1].shape if skips else None
            h = blocks.forward_timestep_embed(block, h, emb, c["c_crossattn"], options, shape)
        return base.model_sampling.calculate_denoised(sigma, net.out(h), x)

    model.set_model_unet_function_wrapper(own_run)
    return model


class Usurper:
    """A patch that does not care for what it finds."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        attention = importlib.import_module("comfy.ldm.modules.attention")
        return attention.optimized_attention(q, k, v, extra_options["n_heads"])


def usurped(model: Any, blocks: list[tuple]) -> Any:
    """Its patches are put into the slots when the network is about to run."""
    model = model.clone()

    def run(executor: Any, x: Tensor, t: Any, text: Any, y: Any, c: Any, options: dict, **kwargs: Any) -> Tensor:
        for block in blocks:
            options.setdefault("patches_replace", {}).setdefault("attn2", {})[block] = Usurper()
        return executor(x, t, text, y, c, options, **kwargs)

    model.add_wrapper_with_key(_wrappers().DIFFUSION_MODEL, "usurper", run)
    return model


def without_patches(model: Any) -> Any:
    """The network runs with nothing of what others put into its attention."""
    model = model.clone()

    def run(executor: Any, x: Tensor, t: Any, text: Any, y: Any, c: Any, options: dict, **kwargs: Any) -> Tensor:
        return executor(x, t, text, y, c, {**options, "patches_replace": {}}, **kwargs)

    model.add_wrapper_with_key(_wrappers().DIFFUSION_MODEL, "without", run)
    return model


def own_model_run(model: Any) -> Any:
    """The model's own function is replaced, so nothing around it is called."""
    model = model.clone()
    model.add_object_patch("apply_model", model.model._apply_model)
    return model
