"""The patch: gated attention at the 16 cross-attention sites of a ComfyUI model (Eq. 4).

    model = apply_adapter(model, Applied(loaded, gamma_tensor(0.5)))

Tokens ride on the conditioning (`encode.py`). ComfyUI batches and orders them and hands them to the model as keyword
arguments; a wrapper takes them there, and puts the attention patches into the slots for this one forward: no guessing
by index, and nothing of ours lies in a model's slots where another pack could find and change it. The wrapper is around
the model, not around its network: a compiled network then finds the patches ready and traces only what they compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_patcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..flexip_model.attention import gated_attention
from ..flexip_model.config import FlexIPConfig
from ..flexip_model.errors import FlexIPError
from ..flexip_model.sites import SITE_BY_COMFY, Site
from .host import keep_patches_apart
from .run import Run, Step
from .schedule import Curve, parse_layers
from .wires import LoadedAdapter

NAME = "flexip"
RUN = "flexip_run"
Slot = tuple[str, int] | tuple[str, int, int]


@dataclass(frozen=True, eq=False, repr=False)
class Applied:
    """One adapter on one model, and how strongly; never changes, so clones share it.

    It is one of the model's patches (under a name of its own, which no layer calls), so that ComfyUI loads its weights.

    Attributes:
        gamma: (B or 1, 1, 1) in [0, 1], on the CPU.
        strength: factor on both branches.
        start, end: the part of the sampling in which it acts, in [0, 1].
        gamma_map: (B or 1, H, W) factor on γ per place, or None.
        attention_mask: (B or 1, H, W) factor on strength per place, or None.
        curve: γ over the steps in place of `gamma`, or None.
        layers: factor on strength per site.
    """

    loaded: LoadedAdapter
    gamma: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    gamma_map: Tensor | None = None
    attention_mask: Tensor | None = None
    curve: Curve | None = None
    layers: dict[str, float] = field(default_factory=lambda: parse_layers(""))

    @property
    def has_masks(self) -> bool:
        """Whether the weights differ from place to place."""
        return self.gamma_map is not None or self.attention_mask is not None

    @property
    def sites(self) -> dict[tuple[str, int], Site]:
        """The sites at which it acts, by ComfyUI's name of the block."""
        return {key: site for key, site in SITE_BY_COMFY.items() if self.layers[site.name] != 0}

    def models(self) -> list[comfy.model_patcher.ModelPatcher]:
        """The weights that ComfyUI has to load together with the model; it asks each patch of a model."""
        return [self.loaded.patcher]

    def to(self, device_or_dtype: Any) -> Applied:
        """ComfyUI asks patches to move; the weights are the patcher's."""
        return self

    def __deepcopy__(self, memo: dict) -> Applied:
        return self

    def around_run(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE: a `Run` for this run; an error where no prompt carries this adapter's tokens."""
        guider = executor.class_obj
        conds = [cond for group in guider.conds.values() for cond in group]
        if not any(self.loaded.p_key in cond.get("model_conds", {}) for cond in conds):
            raise FlexIPError(
                f"the model has FlexIP applied with {self.loaded.name}, but no prompt carries its tokens; connect "
                "positive and negative of FlexIP Encode Reference, with the same adapter, to the sampler"
            )
        options = guider.model_options.setdefault("transformer_options", {})
        if RUN not in options:
            options[RUN] = Run(guider.model_patcher.get_model_object("model_sampling"))
        return executor(*args, **kwargs)

    def around_model(self, executor: Any, x: Tensor, t: Any, c_concat: Any = None, c_crossattn: Any = None,
                     control: Any = None, transformer_options: dict | None = None, **kwargs: Any) -> Any:
        """APPLY_MODEL: take P and S of this batch from the arguments and put the patches over what is there."""
        options = transformer_options or {}
        p = kwargs.get(self.loaded.p_key)
        run = options.get(RUN)
        if p is not None and run is not None:
            inside = (self.start, self.end) == (0.0, 1.0)
            if inside or run.active(self.start, self.end, float(options["sigmas"][0])):
                step = Step(self, run, p, kwargs.get(self.loaded.s_key), kwargs[self.loaded.id_key], options)
                options = self._with_patches(step, options)
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def _with_patches(self, step: Step, options: dict[str, Any]) -> dict[str, Any]:
        """Options for one forward; those that were given, and what they hold, stay as they are."""
        patches = options.get("patches_replace", {})
        slots = dict(patches.get("attn2", {}))
        for key, site in self.sites.items():
            # ComfyUI looks for (block, number, index) first: where another pack uses that form, that slot counts.
            slot: Slot = (*key, 0) if (*key, 0) in slots else key
            slots[slot] = SitePatch(step, site, slots.get(slot))
        return {**options, "patches_replace": {**patches, "attn2": slots}}


@dataclass(frozen=True, eq=False, repr=False)
class SitePatch:
    """Sits in the slot of one cross-attention layer for one forward; what was there before gives the base output."""

    step: Step
    site: Site
    previous: Callable | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """q (R, L, C), k and v (R, T, C), projected → (R, L, C) before `to_out`."""

        def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return comfy_attention.optimized_attention(
                q, k, v, heads,
                attn_precision=extra_options.get("attn_precision"), transformer_options=extra_options,
            )

        heads = extra_options["n_heads"]
        out = attend(q, k, v, heads) if self.previous is None else self.previous(q, k, v, extra_options)
        if self.step.rows != q.shape[0]:
            raise FlexIPError(
                f"at {self.site.name} the model's batch has {q.shape[0]} rows and FlexIP's tokens {self.step.rows}; "
                "another node splits the batch inside the model, remove one of them"
            )
        p, s = self.step.key_values(self.site, q)
        return gated_attention(q, out, p, s, *self.step.gate(self.site, q, extra_options), heads, attend)


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
    patched.set_model_patch(applied, NAME)
    # One name for all of them, ComfyUI keeps a list: with a new name each time, a compiled network compiles anew.
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, NAME, applied.around_run)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, NAME, applied.around_model)
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
