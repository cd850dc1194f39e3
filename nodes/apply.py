"""Apply FlexIP, FlexIP γ Sweep."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..flexip_model.common.errors import FlexIPError
from ..flexip_model.common.gammas import MOST, read_gammas
from ..flexip_model.method.gate import gamma_tensor
from .host import fields, or_curve
from .patch.applied import Applied
from .patch.apply import apply_adapter
from .schedule import parse_layers, read_curve
from .wires import FlexIPAdapterType, FlexIPGammas, LoadedAdapter

CATEGORY = "FlexIP"
DEFAULT_GAMMA = 0.75
"""Where, of the γ between 0 and 1 that were measured on the small model, subject, background and style hold at once
most often (model card)."""


def _model() -> io.Input:
    return io.Model.Input("model", tooltip="A Stable Diffusion 1.5 model. It is not changed: the node gives a clone.")


def _adapter() -> io.Input:
    tip = "The adapter that FlexIP Encode Reference used; another one is refused."
    return FlexIPAdapterType.Input("adapter", tooltip=tip)


def strength_inputs(optional: bool) -> list[io.Input]:
    """strength, start and end, as every node takes them that puts an adapter on a model."""
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            optional=optional,
            tooltip="How strongly FlexIP acts at all. 0 gives exactly the model without FlexIP; 1 is what it was "
            "trained for.",
        ),
        io.Float.Input(
            "start",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=optional,
            tooltip="Where in the sampling FlexIP begins: 0 is the first step. A later start lets the prompt set the "
            "composition.",
            **fields(io.Float.Input, advanced=True),
        ),
        io.Float.Input(
            "end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=optional,
            tooltip="Where in the sampling FlexIP ends: 1 is after the last step.",
            **fields(io.Float.Input, advanced=True),
        ),
    ]


def check_range(start: float, end: float) -> None:
    """Raise FlexIPError where a range of the sampling is empty or outside [0, 1]."""
    if not 0 <= start < end <= 1:
        raise FlexIPError(f"start is {start:g} and end {end:g}; expected 0 ≤ start < end ≤ 1")


def _mask(mask: Tensor | None, what: str) -> Tensor | None:
    """A MASK as float32 (B, H, W) on the CPU.

    Raises:
        FlexIPError: another shape, or values outside [0, 1].
    """
    if mask is None:
        return None
    mask = mask.detach().float().cpu()
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or mask.numel() == 0 or not bool(((mask >= -1e-3) & (mask <= 1.001)).all()):
        raise FlexIPError(f"{what} has shape {list(mask.shape)}; expected (batch, height, width) with values 0 to 1")
    return mask.clamp(0, 1)


def share_noise_under_masks(model: Any, count: int) -> None:
    """Give each run of `count` pictures the noise of its first one where an inpainting mask protects the latent.

    Some of ComfyUI's samplers (ddim, uni_pc) draw that noise anew for every picture of a batch.
    """
    scale = model.get_model_object("scale_latent_inpaint")

    def shared(noise: Tensor, **given: Any) -> Tensor:
        if len(noise) % count == 0:
            noise = noise[::count].repeat_interleave(count, 0)
        return scale(noise=noise, **given)

    model.add_object_patch("scale_latent_inpaint", shared)


class FlexIPApply(io.ComfyNode):
    """The adapter on a model, with one γ."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlexIPApply",
            display_name="Apply FlexIP",
            category=CATEGORY,
            description="Puts the adapter beside the model's cross-attention. γ is the dial: 1 keeps the subject, 0 "
            "follows the prompt. Changing it runs no encoder again.",
            inputs=[
                _model(),
                _adapter(),
                io.MultiType.Input(
                    io.Float.Input(
                        "gamma",
                        default=DEFAULT_GAMMA,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        display_mode=io.NumberDisplay.slider,
                        tooltip="γ: 1 keeps the subject of the reference (the preservation branch alone), 0 follows "
                        "the prompt (the personalization branch alone); between them the two are mixed, and the dial "
                        "of a calibrated adapter spreads what changes over all of its turn. A connected list of "
                        "numbers is a γ for each picture or frame of the batch.",
                    ),
                    types=[io.Int],
                ),
                *strength_inputs(optional=False),
                io.Mask.Input(
                    "gamma_map",
                    optional=True,
                    tooltip="γ per place: white uses γ as it is, black uses 0. Lock a face, leave the clothes to the "
                    "prompt. Stretched over the picture.",
                    **fields(io.Mask.Input, advanced=True),
                ),
                io.Mask.Input(
                    "attention_mask",
                    optional=True,
                    tooltip="Where FlexIP acts: white is all of its strength, black none. Stretched over the picture.",
                    **fields(io.Mask.Input, advanced=True),
                ),
                or_curve(
                    io.String.Input(
                        "curve",
                        default="",
                        optional=True,
                        tooltip="γ over the steps, in place of the slider: key points position:γ such as "
                        "0:1, 0.5:0.8, 1:0.2, or values spread evenly such as 1, 0.8, 0.2; or ComfyUI's Curve Editor. "
                        "Empty: the slider.",
                        **fields(io.String.Input, advanced=True),
                    )
                ),
                io.String.Input(
                    "layers",
                    default="",
                    optional=True,
                    tooltip="Weights per block on top of strength, such as down=1, mid=0.5, up_blocks.1=0. "
                    "Empty: 1 everywhere.",
                    **fields(io.String.Input, advanced=True),
                ),
            ],
            outputs=[
                io.Model.Output("patched", display_name="model", tooltip="The model with FlexIP, for the sampler.")
            ],
            **fields(io.Schema, search_aliases=["ip-adapter", "ipadapter", "subject", "reference strength", "gamma"]),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        adapter: LoadedAdapter,
        gamma: Any,
        strength: float,
        start: float,
        end: float,
        gamma_map: Tensor | None = None,
        attention_mask: Tensor | None = None,
        curve: Any = "",
        layers: str = "",
    ) -> io.NodeOutput:
        check_range(start, end)
        applied = Applied(
            adapter,
            gamma_tensor(read_gammas(gamma)),
            strength=strength,
            start=start,
            end=end,
            gamma_map=_mask(gamma_map, "the γ map"),
            attention_mask=_mask(attention_mask, "the attention mask"),
            curve=read_curve(curve),
            layers=parse_layers(layers),
        )
        return io.NodeOutput(apply_adapter(model, applied))


class FlexIPGammaSweep(io.ComfyNode):
    """One batch with a γ per picture, all from the same noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlexIPGammaSweep",
            display_name="FlexIP γ Sweep",
            category=CATEGORY,
            description="Makes one picture per γ in one batch, all from the same noise, so that γ is all that "
            "differs. Connect the model and the latent to the sampler, the γ list to FlexIP Sweep Grid.",
            inputs=[  # model and latent first, in the outputs' places: a bypass then joins each to its own
                _model(),
                io.Latent.Input("latent", tooltip="One latent (batch size 1); it is repeated for each γ."),
                _adapter(),
                io.MultiType.Input(
                    io.String.Input(
                        "gammas",
                        default="0:1:0.25",
                        tooltip="The γ values: first:last:step such as 0:1:0.25, or a list such as 0, 0.3, 1. A "
                        "number or a list of numbers can be connected.",
                    ),
                    types=[io.Float, io.Int],
                ),
                *strength_inputs(optional=True),
            ],
            outputs=[
                io.Model.Output("patched", display_name="model", tooltip="The model with one γ per picture."),
                io.Latent.Output("latents", display_name="latent", tooltip="One latent per γ, all with one noise."),
                FlexIPGammas.Output("gamma_list", display_name="gammas", tooltip="The γ values, for the grid."),
            ],
            **fields(io.Schema, search_aliases=["gamma sweep", "xy plot", "compare weights", "batch of weights"]),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        adapter: LoadedAdapter,
        latent: dict[str, Any],
        gammas: Any,
        strength: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
    ) -> io.NodeOutput:
        check_range(start, end)
        values = read_gammas(gammas)
        if len(values) > MOST:
            raise FlexIPError(f"the list of γ has {len(values)} values; expected at most {MOST}, each is a picture")
        count, batch = len(values), latent["samples"].shape[0]
        if batch != 1:
            raise FlexIPError(f"the latent is a batch of {batch}; the sweep repeats one, so set batch_size to 1")
        repeated = dict(latent)
        repeated["samples"] = latent["samples"].repeat(count, *[1] * (latent["samples"].ndim - 1))
        mask = latent.get("noise_mask")
        if torch.is_tensor(mask) and mask.shape[0] > 1:
            repeated["noise_mask"] = mask[:1]
        repeated["batch_index"] = [latent.get("batch_index", [0])[0]] * count
        applied = Applied(adapter, gamma_tensor(values), strength=strength, start=start, end=end)
        swept = apply_adapter(model, applied)
        share_noise_under_masks(swept, count)
        return io.NodeOutput(swept, repeated, values)
