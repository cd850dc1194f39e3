"""FlexIP Find γ: the γ at which a score reaches a target, by real samplings, all from one seed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from torch import Tensor

from ...flexip_model.common.errors import FlexIPError
from ...flexip_model.method.gate import gamma_tensor
from ..apply import check_range, strength_inputs
from ..host import fields, show_text, warn
from ..patch.applied import Applied
from ..patch.apply import NAME as PATCH
from ..patch.apply import apply_adapter
from ..wires import FlexIPAdapterType, FlexIPEncoders, LoadedAdapter, LoadedEncoders
from .likeness import NO_JUDGES, SCORES, Likeness
from .search import find_gamma, write_log

COMFY_NODES: Any = importlib.import_module("nodes")
"""ComfyUI's own nodes; by this name a type checker would find the pack's."""
CATEGORY = "FlexIP"
NAME = "flexip_find_gamma"


class FlexIPFindGamma(io.ComfyNode):
    """A search over γ, each try a sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        samplers, schedulers = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
        return io.Schema(
            node_id="FlexIPFindGamma",
            display_name="FlexIP Find γ",
            category=CATEGORY,
            description="Finds the γ at which CLIP-I, DINO-I or CLIP-T reaches a target: draws the picture at γ 0 and "
            "γ 1, then halves what is between, always with one seed. It stands in the place of Apply FlexIP, KSampler "
            "and VAE Decode. The encoders that score are no independent judges.",
            inputs=[
                io.Model.Input("model", tooltip="The model from before Apply FlexIP. It is not changed."),
                io.Conditioning.Input("positive", tooltip="The prompt of FlexIP Encode Reference."),
                io.Conditioning.Input("negative", tooltip="The negative prompt of FlexIP Encode Reference."),
                io.Latent.Input("latent_image", tooltip="The latent to begin from. A batch is scored by its mean."),
                io.Vae.Input("vae", tooltip="Decodes each try, so that it can be scored."),
                FlexIPAdapterType.Input("adapter", tooltip="The adapter that FlexIP Encode Reference used."),
                FlexIPEncoders.Input("encoders", tooltip="What scores: the encoders of the adapter."),
                io.Combo.Input(
                    "score",
                    options=list(SCORES),
                    default=SCORES[0],
                    tooltip="CLIP-I: what the picture shows, and DINO-I: how it looks, compared with the reference; "
                    "they rise with γ. CLIP-T: what it shows, compared with the prompt; it falls with γ.",
                ),
                io.Float.Input(
                    "target",
                    default=0.8,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The score to reach. FlexIP Score after a sweep shows what is usual; the log of a search "
                    "shows what γ 0 and γ 1 have.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="How near the score must come to the target.",
                ),
                io.Int.Input(
                    "most",
                    default=8,
                    min=2,
                    max=32,
                    tooltip="At most so many samplings, γ 0 and γ 1 included; each takes as long as a KSampler.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The seed of the noise, the same for all tries.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="The steps of each sampling."),
                io.Float.Input(
                    "cfg", default=7.5, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance, as KSampler's."
                ),
                io.Combo.Input("sampler_name", options=list(samplers), tooltip="The sampler, as KSampler's."),
                io.Combo.Input("scheduler", options=list(schedulers), tooltip="The noise schedule, as KSampler's."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the latent is drawn anew, as KSampler's.",
                ),
                io.Image.Input(
                    "reference", optional=True, tooltip="The subject, for CLIP-I and DINO-I: one picture or several."
                ),
                io.String.Input("prompt", default="", optional=True, tooltip="The prompt, for CLIP-T alone."),
                *strength_inputs(optional=True),
            ],
            outputs=[
                io.Float.Output("found_gamma", display_name="gamma", tooltip="The γ found, for Apply FlexIP."),
                io.Image.Output("image", display_name="image", tooltip="The picture at this γ."),
                io.Float.Output("found_score", display_name="score", tooltip="The score of this picture."),
                io.String.Output(
                    "log", display_name="log", tooltip="Every γ that was tried, its score, and what went otherwise."
                ),
            ],
            **fields(io.Schema, search_aliases=["auto gamma", "find gamma", "bisection", "target similarity"]),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        vae: Any,
        adapter: LoadedAdapter,
        encoders: LoadedEncoders,
        score: str,
        target: float,
        tolerance: float,
        most: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        reference: Tensor | None = None,
        prompt: str = "",
        strength: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
    ) -> io.NodeOutput:
        check_range(start, end)
        likeness = Likeness(encoders, reference, prompt)
        if score in likeness.lacking:
            raise FlexIPError(f"there is no {score} to search by: {likeness.lacking[score]}")
        if has_adapter(model, adapter):
            warn(
                "the model has this adapter already, which acts beside this node; connect the model from before Apply "
                "FlexIP",
                adapter.name,
            )
        progress = Progress(model, most)
        nearest: list[tuple[float, Tensor]] = []

        def score_at(gamma: float) -> float:
            """Draw at this γ; the picture is kept where its score is the nearest so far."""
            comfy.model_management.throw_exception_if_processing_interrupted()
            show_text(f"sampling {progress.begun + 1} of at most {most}: γ {gamma:g}")
            applied = Applied(adapter, gamma_tensor([gamma]), strength=strength, start=start, end=end)
            patched = progress.watch(apply_adapter(model, applied))
            (latent,) = COMFY_NODES.common_ksampler(
                patched, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
            )
            (images,) = COMFY_NODES.VAEDecode().decode(vae, latent)
            values = likeness(images, [score])[score]
            value = sum(values) / len(values)
            if not math.isfinite(value):
                raise FlexIPError(f"{score} of the picture at γ {gamma:g} is {value}; look at that picture first")
            if not nearest or abs(value - target) < abs(nearest[0][0] - target):
                nearest[:] = [(value, images)]
            return value

        found = find_gamma(score_at, target, tolerance, most, score)
        progress.finish()
        log = f"{write_log(found, score, target, tolerance)}\n{NO_JUDGES}"
        for sentence in found.warnings:
            warn(sentence, adapter.name)
        show_text(log)
        return io.NodeOutput(found.best.gamma, nearest[0][1], found.best.score, log)


def has_adapter(model: Any, adapter: LoadedAdapter) -> bool:
    """Whether a node before has put this adapter on the model."""
    patches = model.model_options.get("transformer_options", {}).get("patches_replace", {})
    return any(applied.loaded.tag == adapter.tag for applied in patches.get(PATCH, {}).values())


class Progress:
    """One bar over all samplings of a search, with ComfyUI's preview pictures.

    Attributes:
        begun: how many samplings have begun.
    """

    def __init__(self, model: Any, most: int) -> None:
        self.begun, self._most, self._whole = 0, most, most
        self._bar = comfy.utils.ProgressBar(most)
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def watch(self, model: Any) -> Any:
        """Have the runs of this model, a clone that nobody else has, move the bar in place of one of their own."""
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, NAME, self._around_run)
        return model

    def _around_run(
        self,
        executor: Callable[..., Tensor],
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Any = None,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        """OUTER_SAMPLE."""
        before, self.begun = self.begun, self.begun + 1

        def told(step: int, x0: Tensor, x: Tensor, steps: int) -> None:
            preview = self._previewer and self._previewer.decode_latent_to_preview_image("JPEG", x0)
            self._whole = self._most * steps
            self._bar.update_absolute(before * steps + step + 1, self._whole, preview)

        return executor(noise, latent_image, sampler, sigmas, denoise_mask, told, *rest, **more)

    def finish(self) -> None:
        """Nothing more is drawn, though fewer samplings were needed than were allowed."""
        self._bar.update_absolute(self._whole, self._whole)
