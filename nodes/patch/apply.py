"""The patch: gated attention at the 16 cross-attention sites of a ComfyUI model (§3.4, Eq. 4).

model = apply_adapter(model, Applied(loaded, gamma_tensor(0.5)))
"""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...flexip_model.common.errors import FlexIPError
from ...flexip_model.method.config import FlexIPConfig
from ...flexip_model.method.sites import SITE_BY_COMFY
from ..host import keep_patches_apart
from .applied import Applied
from .wrappers import Wrappers

NAME = "flexip"


def apply_adapter(model: comfy.model_patcher.ModelPatcher, applied: Applied) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model with the adapter in its attention; at strength 0 a clone without anything.

    Raises:
        FlexIPError: the model is not of SD1.5's structure, or of another size than the adapter.
    """
    check_model(model, applied.loaded.adapter.config, applied.loaded.name)
    patched = model.clone()
    if applied.strength == 0 or not applied.sites:
        return patched
    keep_patches_apart(model, patched)
    patched.add_callback_with_key(CallbacksMP.ON_CLONE, NAME, keep_patches_apart)
    # Among the replacing patches, not the plain ones: a version of Ultimate SD Upscale fails on any plain one.
    replacing = patched.model_options["transformer_options"].get("patches_replace", {})
    patched.set_model_patch_replace(applied, NAME, "model", len(replacing.get(NAME, {})))
    wrappers = Wrappers(applied)
    # One name for all of them, ComfyUI keeps a list: with a new name each time, a compiled network compiles anew.
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, NAME, wrappers.around_run)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, NAME, wrappers.around_model)
    return patched


def check_model(model: comfy.model_patcher.ModelPatcher, config: FlexIPConfig, name: str) -> None:
    """Compare the model's own cross-attention layers with SD1.5's sites and with the adapter's sizes.

    Raises:
        FlexIPError: one sentence that names what the model is and what was expected.
    """
    kind = type(getattr(model.model, "model_config", model.model)).__name__
    unet = model.get_model_object("diffusion_model")
    if not all(hasattr(unet, part) for part in ("input_blocks", "middle_block", "output_blocks")):
        raise FlexIPError(f"this model is a {kind}, FlexIP needs Stable Diffusion 1.5; load an SD1.5 checkpoint")
    layers: dict[tuple[str, int], list[Any]] = {}
    blocks = [("input", i, b) for i, b in enumerate(unet.input_blocks)]
    blocks += [("middle", 0, unet.middle_block)] + [("output", i, b) for i, b in enumerate(unet.output_blocks)]
    for block, number, module in blocks:
        found = [m.attn2 for m in module.modules() if getattr(m, "attn2", None) is not None]
        if found:
            layers[block, number] = found
    if set(layers) != set(SITE_BY_COMFY) or any(len(found) != 1 for found in layers.values()):
        count = sum(len(found) for found in layers.values())
        raise FlexIPError(
            f"this model is a {kind} with {count} cross-attention layers, FlexIP needs Stable Diffusion 1.5 with "
            f"{len(SITE_BY_COMFY)}; load an SD1.5 checkpoint"
        )
    for key, site in SITE_BY_COMFY.items():
        attn2 = layers[key][0]
        sizes = (attn2.to_q.out_features, attn2.to_k.in_features)
        wanted = (config.channels[site.level], config.text_width)
        if sizes != wanted:
            raise FlexIPError(
                f"the model and {name} do not belong together: at {site.name} the model is {sizes[0]} wide with text "
                f"of {sizes[1]}, the adapter {wanted[0]} with {wanted[1]}; load the base model that the adapter is for"
            )
