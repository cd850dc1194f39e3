"""Around a sampling run and around each forward of the model: where patches come from, and whether they acted.

Tokens ride on the conditioning (`encode.py`). ComfyUI batches and orders them and hands them to the model as keyword
arguments; a wrapper takes them there, and puts the attention patches into the slots for this one forward: no guessing
by index, and nothing of ours lies in a model's slots where another pack could find and change it. The wrapper is around
the model, not around its network: a compiled network then finds the patches ready and traces only what they compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...flexip_model.common.errors import FlexIPError
from ..host import compute_dtype, warn
from .applied import Applied
from .compiled import own_code
from .look import LOOK
from .run import Acted, RowTokens, SamplingRun, Step
from .site_patch import Rest, SitePatch

RUN = "flexip_run"
REST = "flexip_rest"
FUNCTION = "model_function_wrapper"
CONTEXT = "c_crossattn"
Slot = tuple[str, int] | tuple[str, int, int]


@dataclass(frozen=True, eq=False, repr=False)
class Wrappers:
    """Those of one applied adapter."""

    applied: Applied

    def __deepcopy__(self, memo: dict) -> Wrappers:
        return self

    def around_run(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE: a `SamplingRun` for this run; an error where no prompt carries this adapter's tokens.

        Afterwards a word in the log and on the sampler's node where FlexIP was to act and did not.
        """
        guider = executor.class_obj
        carry = {
            name: any(self.applied.loaded.p_key in cond.get("model_conds", {}) for cond in group)
            for name, group in guider.conds.items()
        }
        if not any(carry.values()):
            raise FlexIPError(
                f"the model has FlexIP applied with {self.applied.loaded.name}, but no prompt carries its tokens; "
                "connect positive and negative of FlexIP Encode Reference, with the same adapter, to the sampler"
            )
        changed = any(self._changed(cond) for group in guider.conds.values() for cond in group)
        options = guider.model_options.setdefault("transformer_options", {})
        if RUN not in options:
            options[RUN] = SamplingRun(guider.model_patcher.get_model_object("model_sampling"))
        run, given = options[RUN], guider.model_options
        if FUNCTION in given:
            # A pack whose function runs the network by itself (DeepCache) skips the wrapper around the model.
            guider.model_options = {**given, FUNCTION: partial(self.around_function, given[FUNCTION])}
        try:
            result = executor(*args, **kwargs)
        finally:
            guider.model_options = given
        sigmas = kwargs.get("sigmas", args[3] if len(args) > 3 else ())
        if any(run.active(self.applied.start, self.applied.end, float(sigma)) for sigma in sigmas[:-1]):
            wrong = idle(self.applied, run.of(self.applied))
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
                warn(wrong, self.applied.loaded.name)
        return result

    def _changed(self, cond: dict[str, Any]) -> bool:
        """Whether an entry's text is another one than S was made from."""
        source, text = cond.get(self.applied.loaded.text_key), cond.get("cross_attn")
        if source is None or text is None or source is text:
            return False
        return source.shape != text.shape or not torch.equal(source.to(text), text)

    def around_function(self, inner: Callable, model_function: Callable, given: dict[str, Any]) -> Any:
        """The patches for a `model_function_wrapper` that may run the network without the model around it.

        Where it does run the model, `around_model` makes patches anew, for whatever batch it is given, and these rest.
        """
        c = given["c"]
        rest = (c.get("transformer_options") or {}).get(REST) or Rest()
        forward = self._forward(getattr(model_function, "__self__", None), given["input"], c.get(CONTEXT), c, rest=rest)
        if forward is None:
            return inner(model_function, given)
        patches, options = forward
        options[REST] = rest
        out = inner(model_function, {**given, "c": {**c, "transformer_options": options}})
        if not rest.now:
            self._note(patches, options)
        return out

    def around_model(
        self,
        executor: Any,
        x: Tensor,
        t: Any,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict | None = None,
        **kwargs: Any,
    ) -> Any:
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
        self._note(patches, options)
        return out

    def _forward(
        self, model: Any, x: Tensor, context: Tensor | None, given: dict[str, Any], *, rest: Rest | None = None
    ) -> tuple[list[SitePatch], dict[str, Any]] | None:
        """The patches of one forward and the options that hold them; None where FlexIP does not act in it.

        The options that were given, and what they hold, stay as they are.
        """
        options = given.get("transformer_options") or {}
        p, run = given.get(self.applied.loaded.p_key), options.get(RUN)
        if run is None:
            return None
        run.of(self.applied).forwards += 1
        look = options.get(LOOK, {}).get(self.applied.loaded.tag)
        if look is not None:
            look.begin_forward(float(options["sigmas"][0]))
        if p is None or not run.active(self.applied.start, self.applied.end, float(options["sigmas"][0])):
            return None
        tokens = RowTokens.of(p, given.get(self.applied.loaded.s_key), given[self.applied.loaded.index_key], len(x))
        like = x.new_empty(0, dtype=compute_dtype(model, x))
        step = Step(self.applied, run, tokens, options=options, like=like, context=context)
        seen = None if look is None else (look, look.rows(options, x, tokens.pictures))
        replaced = options.get("patches_replace", {})
        slots, patches = dict(replaced.get("attn2", {})), []
        for key, site in self.applied.sites.items():
            # ComfyUI looks for (block, number, index) first: where another pack uses that form, that slot counts.
            slot: Slot = (*key, 0) if (*key, 0) in slots else key
            grid = site.grid(*x.shape[-2:]) if self.applied.has_masks else None
            weights = {grid: step.gate(site, grid)}
            slots[slot] = SitePatch(step, site, slots.get(slot), *step.key_values(site), weights, rest, seen)
            patches.append(slots[slot])
        return patches, {**options, "patches_replace": {**replaced, "attn2": slots}}

    def _note(self, patches: list[SitePatch], options: dict[str, Any]) -> None:
        """After a forward: which patches ran, and who sits in the slots of those that did not."""
        acted, slots = options[RUN].of(self.applied), options["patches_replace"]["attn2"]
        acted.with_tokens += 1
        for patch in patches:
            if patch.acted == patch.branches:
                acted.sites.add(patch.site.name)
                continue
            for slot in (patch.site.comfy, (*patch.site.comfy, 0)):
                other = slots.get(slot)
                if other is not None and other is not patch:
                    kind = other if hasattr(other, "__qualname__") else type(other)
                    acted.instead[patch.site.name] = f"{kind.__module__}.{kind.__qualname__}"


def idle(applied: Applied, acted: Acted) -> str:
    """One sentence on why an adapter did not act everywhere in a run in which it was to act; empty where it did."""
    missing = [site.name for site in applied.sites.values() if site.name not in acted.sites]
    if not missing:
        return ""
    way_out = "remove that node or Apply FlexIP"
    if acted.forwards == 0:
        what = "another node runs the model in a way of its own and skips what others put around it"
    elif acted.with_tokens == 0:
        what = "no prompt that carries its tokens was active in its part of the sampling"
        way_out = "change its start and end or those of the prompts"
    elif acted.instead:
        what = f"another node's {' and '.join(sorted(set(acted.instead.values())))} took its place in the model"
    else:
        what = "another node runs the model's attention in a way of its own"
    return (
        f"FlexIP did not act at {len(missing)} of {len(applied.sites)} layers in this run, the first is {missing[0]}: "
        f"{what}; the picture is not what the graph says, {way_out}"
    )
