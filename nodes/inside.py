"""See inside (Fig. 7): a node that records what a run attends to, and one that draws it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from torch import Tensor

from ..flexip_model.common.errors import FlexIPError
from ..flexip_model.images.map_sheet import COLUMNS, KINDS, UNREAD, MapRows, draw_map_sheet, rows_of
from ..flexip_model.method.inside.record import AttentionRecord
from ..flexip_model.method.inside.retrieval import on_grids, retrieval_maps
from ..flexip_model.method.sites import choose_sites
from .grid import pictures_of
from .host import fields
from .patch.look import Recording
from .wires import Embeds, FlexIPAdapterType, FlexIPAttention, FlexIPEmbeds, LoadedAdapter

CATEGORY = "FlexIP"
NAME = "flexip_look"
ALL, BOTH = "all", "both"
BRANCHES = {ALL: tuple(COLUMNS), "queries": ("queries",), "CLS": ("cls",), "S": ("s",), "text": ("text",)}


class FlexIPRecordAttention(io.ComfyNode):
    """A model whose runs are looked at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlexIPRecordAttention",
            display_name="FlexIP Record Attention",
            category=CATEGORY,
            description="Notes, while the sampler runs, which places of the picture attend to what. The picture stays "
            "the same; a run takes longer. FlexIP Attention Maps draws what was noted.",
            inputs=[
                io.Model.Input("model", tooltip="The model of Apply FlexIP or FlexIP γ Sweep."),
                FlexIPAdapterType.Input("adapter", tooltip="The adapter that is looked at, the same as there."),
            ],
            outputs=[
                io.Model.Output("recorded_model", display_name="model", tooltip="The model, for the sampler."),
                FlexIPAttention.Output(
                    "recording", display_name="recording", tooltip="What was noted, for FlexIP Attention Maps."
                ),
            ],
            **fields(io.Schema, search_aliases=["attention maps", "cross attention", "heatmap", "daam"]),
        )

    @classmethod
    def execute(cls, model: Any, adapter: LoadedAdapter) -> io.NodeOutput:
        recording, watched = Recording(adapter), model.clone()
        watched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, NAME, recording.around_run)
        return io.NodeOutput(watched, recording)


class FlexIPAttentionMaps(io.ComfyNode):
    """What a run attended to, as one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlexIPAttentionMaps",
            display_name="FlexIP Attention Maps",
            category=CATEGORY,
            description="Draws which places of the pictures attend to the subject's queries, its [CLS], S and the "
            "text, as the paper's Fig. 7: white is high. Other steps or layers are drawn without sampling again.",
            inputs=[  # the pictures first, in the output's place: a bypass then gives them
                io.Image.Input("images", tooltip="The decoded pictures of the run."),
                io.Latent.Input("latent", tooltip="The sampler's output; it tells which run is meant."),
                FlexIPAttention.Input("recording", tooltip="Of FlexIP Record Attention, before that sampler."),
                io.Combo.Input("branch", options=list(BRANCHES), default=ALL, tooltip="Which tokens are shown."),
                io.Combo.Input(
                    "kind",
                    options=[BOTH, *KINDS],
                    default=BOTH,
                    tooltip="attention weights: the share of a branch's softmax, each map on its own scale. "
                    "contributions: how much it adds to the picture, all maps on one scale.",
                ),
                io.Int.Input("first_step", default=1, min=1, max=10000, tooltip="The mean from this step on."),
                io.Int.Input("last_step", default=0, min=0, max=10000, tooltip="To this step; 0 is the last one."),
                io.String.Input(
                    "layers",
                    default="",
                    optional=True,
                    tooltip="The mean over these layers, such as: mid, up_blocks.1. Empty: all of them.",
                ),
                FlexIPEmbeds.Input(
                    "embeds",
                    optional=True,
                    tooltip="Of FlexIP Encode Reference: shows too which patches of the reference are read.",
                ),
            ],
            outputs=[io.Image.Output("maps", display_name="image", tooltip="One picture with all maps.")],
            **fields(io.Schema, search_aliases=["attention maps", "cross attention", "heatmap", "daam"]),
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        latent: dict[str, Any],
        recording: Recording,
        branch: str,
        kind: str,
        first_step: int,
        last_step: int,
        layers: str = "",
        embeds: Embeds | None = None,
    ) -> io.NodeOutput:
        sites = choose_sites(layers)
        record = recording.of(latent["samples"])
        shown = [] if embeds is None else reference_rows(recording.loaded, embeds)
        shown += picture_rows(record, images, sites, first_step, last_step)
        sheet = draw_map_sheet(shown, BRANCHES[branch], KINDS if kind == BOTH else (kind,))
        return io.NodeOutput(torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None])


def picture_rows(record: AttentionRecord, images: Tensor, sites: Any, first: int, last: int) -> list[MapRows]:
    """The maps of each picture: images (B, H, W, C) in [0, 1].

    Raises:
        FlexIPError: there are not as many pictures as the run had; as `AttentionRecord.mean`.
    """
    maps = record.mean(sites, first, last)
    if len(images) != record.pictures:
        raise FlexIPError(
            f"there are {len(images)} pictures and the recorded run made {record.pictures}; connect those that were "
            "decoded from this latent"
        )
    labels = [f"picture {number + 1}" for number in range(len(images))] if len(images) > 1 else ["picture"]
    return rows_of(labels, pictures_of(images), maps.weights, maps.contributions, maps.absent)


def reference_rows(loaded: LoadedAdapter, embeds: Embeds) -> list[MapRows]:
    """What the resamplers read of each reference.

    Raises:
        FlexIPError: the tokens are another adapter's.
    """
    if embeds.tag != loaded.tag:
        raise FlexIPError(f"the embeds are of another adapter than {loaded.name}; connect those of the same adapter")
    if embeds.seen is None:
        return []
    found = retrieval_maps(loaded.adapter, embeds.features.to(loaded.load()))
    pictures = pictures_of(embeds.seen)
    return rows_of(["reference"] * len(pictures), pictures, *on_grids(found), UNREAD)
