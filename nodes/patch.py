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
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_patcher
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..flexip_model.attention import KeyValue, gated_attention
from ..flexip_model.config import FlexIPConfig
from ..flexip_model.errors import FlexIPError
from ..flexip_model.sites import SITE_BY_COMFY, Site
from .compiled import own_code
from .host import compute_dtype, keep_patches_apart, warn
from .run import Acted, RowTokens, Run, Step
from .schedule import Curve, parse_layers
from .wires import LoadedAdapter

NAME = "flexip"
RUN = "flexip_run"
REST = "flexip_rest"
FUNCTION = "model_function_wrapper"
CONTEXT = "c_crossattn"
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
        """OUTER_SAMPLE: a `Run` for this run; an error where no prompt carries this adapter's tokens.

        Afterwards a word in the log and on the sampler's node where FlexIP was to act and did not.
        """
        guider = executor.class_obj
        carry = {
            name: any(self.loaded.p_key in cond.get("model_conds", {}) for cond in group)
            for name, group in guider.conds.items()
        }
        if not any(carry.values()):
            raise FlexIPError(
                f"the model has FlexIP applied with {self.loaded.name}, but no prompt carries its tokens; connect "
                "positive and negative of FlexIP Encode Reference, with the same adapter, to the sampler"
            )
        changed = any(self._changed(cond) for group in guider.conds.values() for cond in group)
        options = guider.model_options.setdefault("transformer_options", {})
        if RUN not in options:
            options[RUN] = Run(guider.model_patcher.get_model_object("model_sampling"))
        run, given = options[RUN], guider.model_options
        if FUNCTION in given:
            # A pack whose function runs the network by itself (DeepCache) skips the wrapper around the model.
            guider.model_options = {**given, FUNCTION: partial(self.around_function, given[FUNCTION])}
        try:
            result = executor(*args, **kwargs)
        finally:
            guider.model_options = given
        sigmas = kwargs.get("sigmas", args[3] if len(args) > 3 else ())
        if any(run.active(self.start, self.end, float(sigma)) for sigma in sigmas[:-1]):
            wrong = idle(self, run.of(self))
            if not wrong and not carry.get("positive", True):
                wrong = (
                    "FlexIP did not act on the positive prompt, which carries no tokens; connect positive of FlexIP "
                    "Encode Reference to the sampler"
                )
            if not wrong and changed:
                wrong = (
                    "FlexIP acted on another text: a prompt was changed after FlexIP Encode Reference (by Concat, "
                    "Average, Zero Out …), so its S is that of the text before; place FlexIP Encode Reference last"
                )
            if wrong:
                warn(wrong, self.loaded.name)
        return result

    def _changed(self, cond: dict[str, Any]) -> bool:
        """Whether an entry's text is another one than S was made from."""
        source, text = cond.get(self.loaded.text_key), cond.get("cross_attn")
        if source is None or text is None or source is text:
            return False
        return source.shape != text.shape or not torch.equal(source.to(text), text)

    def around_function(self, inner: Callable, model_function: Callable, given: dict[str, Any]) -> Any:
        """The patches for a `model_function_wrapper` that may run the network without the model around it.

        Where it does run the model, `around_model` makes patches anew, for whatever batch it is given, and these rest.
        """
        c = given["c"]
        rest = (c.get("transformer_options") or {}).get(REST) or Rest()
        forward = self._forward(getattr(model_function, "__self__", None), given["input"], c.get(CONTEXT), c, rest)
        if forward is None:
            return inner(model_function, given)
        patches, options = forward
        options[REST] = rest
        out = inner(model_function, {**given, "c": {**c, "transformer_options": options}})
        if not rest.now:
            options[RUN].of(self).note(patches, options["patches_replace"]["attn2"])
        return out

    def around_model(self, executor: Any, x: Tensor, t: Any, c_concat: Any = None, c_crossattn: Any = None,
                     control: Any = None, transformer_options: dict | None = None, **kwargs: Any) -> Any:
        """APPLY_MODEL: take P and S of this batch from the arguments and put the patches over what is there."""
        options = transformer_options or {}
        if REST in options:
            options[REST].now = True
        forward = self._forward(executor.class_obj, x, c_crossattn, {**kwargs, "transformer_options": options})
        if forward is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        patches, options = forward
        form = tuple(patch.form for patch in patches)
        wrappers = options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
        with own_code(executor.class_obj.diffusion_model, form, wrappers):
            out = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        options[RUN].of(self).note(patches, options["patches_replace"]["attn2"])
        return out

    def _forward(
        self, model: Any, x: Tensor, context: Tensor | None, given: dict[str, Any], rest: Rest | None = None
    ) -> tuple[list[SitePatch], dict[str, Any]] | None:
        """The patches of one forward and the options that hold them; None where FlexIP does not act in it.

        The options that were given, and what they hold, stay as they are.
        """
        options = given.get("transformer_options") or {}
        p, run = given.get(self.loaded.p_key), options.get(RUN)
        if run is None:
            return None
        run.of(self).forwards += 1
        if p is None or not run.active(self.start, self.end, float(options["sigmas"][0])):
            return None
        tokens = RowTokens.of(p, given.get(self.loaded.s_key), given[self.loaded.index_key], len(x))
        like = x.new_empty(0, dtype=compute_dtype(model, x))
        step = Step(self, run, tokens, options, like, context)
        replaced = options.get("patches_replace", {})
        slots, patches = dict(replaced.get("attn2", {})), []
        for key, site in self.sites.items():
            # ComfyUI looks for (block, number, index) first: where another pack uses that form, that slot counts.
            slot: Slot = (*key, 0) if (*key, 0) in slots else key
            grid = site_grid(site, x) if self.has_masks else None
            weights = {grid: step.gate(site, grid)}
            slots[slot] = SitePatch(step, site, slots.get(slot), *step.key_values(site), weights, rest)
            patches.append(slots[slot])
        return patches, {**options, "patches_replace": {**replaced, "attn2": slots}}


def site_grid(site: Site, x: Tensor) -> tuple[int, int]:
    """Height and width in tokens of a layer, by the latent's: each of SD1.5's levels halves them, rounded up."""
    height, width = x.shape[-2:]
    for _ in range(site.level):
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def idle(applied: Applied, acted: Acted) -> str:
    """One sentence on why an adapter did not act everywhere in a run in which it was to act; empty where it did."""
    missing = [site.name for site in applied.sites.values() if site.name not in acted.sites]
    if not missing:
        return ""
    if acted.forwards == 0:
        what = "another node runs the model in a way of its own and skips what others put around it"
    elif acted.with_tokens == 0:
        what = "no prompt that carries its tokens was active in its part of the sampling"
    elif acted.instead:
        what = f"another node's {' and '.join(sorted(set(acted.instead.values())))} took its place in the model"
    else:
        what = "another node runs the model's attention in a way of its own"
    return (
        f"FlexIP did not act at {len(missing)} of {len(applied.sites)} layers in this run, the first is {missing[0]}: "
        f"{what}; the picture is not what the graph says, remove that node or Apply FlexIP"
    )


class Rest:
    """Whether the patches of one function wrapper have to leave the work to those of the model."""

    now = False


@dataclass(eq=False, repr=False)
class SitePatch:
    """Sits in the slot of one cross-attention layer for one forward; what was there before gives the base output.

    Attributes:
        p, s: keys and values of the two branches, (R, N, C); None where not needed.
        weights: the gate's, by the layer's grid of tokens where a mask lies on it, else by None.
        rest: tells patches that were put around a function that the model's own are there.
        acted: the branches that were added, None before.
    """

    step: Step
    site: Site
    previous: Callable | None
    p: KeyValue | None
    s: KeyValue | None
    weights: dict[tuple[int, int] | None, tuple[Tensor, Tensor]]
    rest: Rest | None = None
    acted: tuple[bool, bool] | None = None

    @property
    def branches(self) -> tuple[bool, bool]:
        """Whether P and S are needed in this forward."""
        return self.p is not None, self.s is not None

    @property
    def form(self) -> tuple:
        """What it computes, but for the tensors that it reads."""
        chained = self.previous.form if isinstance(self.previous, SitePatch) else type(self.previous)
        applied = self.step.applied
        return self.site.name, self.branches, applied.has_masks and (applied.strength, self.step.rows), chained

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """q (R, L, C), k and v (R, T, C), projected → (R, L, C) before `to_out`."""

        def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return comfy_attention.optimized_attention(
                q, k, v, heads,
                attn_precision=extra_options.get("attn_precision"), transformer_options=extra_options,
            )

        heads = extra_options["n_heads"]
        if self.previous is not None:
            out = self.previous(q, k, v, extra_options)
        elif len(k) == len(q):
            out = attend(q, k, v, heads)
        else:
            raise FlexIPError(
                f"at {self.site.name} the model's attention has {len(q)} rows of queries and {len(k)} of keys; another "
                "node gives the layers prompts of its own (NAG does) and takes their attention over, which cannot be "
                "while FlexIP is there: remove one of them"
            )
        if self.rest is not None and self.rest.now:
            return out
        self.acted = (self.p is not None, self.s is not None)
        grid = self._grid(q, extra_options) if self.step.applied.has_masks else None
        p, s, weights = self.p, self.s, self.weights.get(grid)
        if weights is None:
            # Deep Shrink and its like change the sizes of layers.
            weights = self.step.gate(self.site, grid)
        if len(q) != self.step.rows:
            rows = self.step.sources(q, self.site, extra_options)
            p, s = (pair and (pair[0][rows], pair[1][rows]) for pair in (p, s))
            weights = weights[0].expand(self.step.rows, -1, -1)[rows], weights[1].expand(self.step.rows, -1, -1)[rows]
        return gated_attention(q, out, p, s, *weights, heads, attend)

    def _grid(self, q: Tensor, extra_options: dict[str, Any]) -> tuple[int, int]:
        height, width = extra_options["activations_shape"][-2:]
        if height * width != q.shape[1]:
            raise FlexIPError(
                f"the mask cannot be fitted: the layer has {q.shape[1]} tokens for a grid of {width}×{height}; another "
                "node merges tokens, use FlexIP without a mask there"
            )
        return height, width


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
