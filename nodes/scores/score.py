"""FlexIP Score: CLIP-I, DINO-I and CLIP-T of pictures, as numbers, as labels for the sweep grid, and as a text."""

from __future__ import annotations

import comfy.utils
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..host import fields, show_text
from ..wires import FlexIPEncoders, FlexIPLabels, LoadedEncoders
from .likeness import SCORES, Likeness, write_labels, write_table

CATEGORY = "FlexIP"


def _score(name: str, what: str) -> io.Output:
    shown = name.lower().replace("-", "_")
    return io.Float.Output(
        shown, display_name=name, is_output_list=True, tooltip=f"{what}, −1 to 1: a list, one number per picture."
    )


class FlexIPScore(io.ComfyNode):
    """Scores of pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlexIPScore",
            display_name="FlexIP Score",
            category=CATEGORY,
            description="How much pictures are like the reference (CLIP-I, DINO-I) and like the prompt (CLIP-T), by "
            "the encoders that are loaded. They are no independent judges: the adapter was trained with them. Compare "
            "pictures of one adapter by it, not methods.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score, one or a batch."),
                FlexIPEncoders.Input("encoders", tooltip="From Load FlexIP Encoders, or the demo model."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="The subject, for CLIP-I and DINO-I. Of several pictures of it, a score is the mean.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    optional=True,
                    tooltip="The prompt, for CLIP-T. It needs a CLIP file that holds its text tower too.",
                ),
            ],
            outputs=[
                _score("CLIP-I", "What the picture shows, compared with the reference"),
                _score("DINO-I", "How the picture looks, compared with the reference"),
                _score("CLIP-T", "What the picture shows, compared with the prompt"),
                FlexIPLabels.Output(
                    "labels", display_name="labels", tooltip="The scores of each picture, for FlexIP Sweep Grid."
                ),
                io.String.Output(
                    "table", display_name="table", tooltip="All scores as a text, and why one is missing."
                ),
            ],
            **fields(io.Schema, search_aliases=["clip score", "dino score", "similarity", "evaluate", "metrics"]),
        )

    @classmethod
    def execute(
        cls, images: Tensor, encoders: LoadedEncoders, reference: Tensor | None = None, prompt: str = ""
    ) -> io.NodeOutput:
        likeness = Likeness(encoders, reference, prompt)
        scores = likeness(images, told=comfy.utils.ProgressBar(len(images)).update)
        table = write_table(scores, likeness.lacking, len(images))
        show_text(table)
        # A score that is missing stops whoever reads it, with the reason; the other outputs go on.
        columns = [
            scores.get(name) or [ExecutionBlocker(f"there is no {name}: {likeness.lacking.get(name, 'no picture')}")]
            for name in SCORES
        ]
        return io.NodeOutput(*columns, write_labels(scores, len(images)), table)
