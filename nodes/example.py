"""FlexIP Example Picture: a reference that ships with the pack, so that the workflows run on a fresh install."""

from __future__ import annotations

from comfy_api.latest import io

from .demo import examples, load_example
from .host import fields

CATEGORY = "FlexIP"


class FlexIPExampleImage(io.ComfyNode):
    """One of the shipped reference pictures; ComfyUI's Load Image reads its own input folder alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = examples()
        return io.Schema(
            node_id="FlexIPExampleImage",
            display_name="FlexIP Example Picture",
            category=CATEGORY,
            description="A reference picture that ships with the pack, to try a workflow with. Put Load Image in its "
            "place for your own.",
            inputs=[
                io.Combo.Input(
                    "example",
                    options=names,
                    default=names[0],
                    tooltip="A picture of models/demo/examples. The demo model saw none of them in training.",
                )
            ],
            outputs=[io.Image.Output("image", tooltip="The picture, for FlexIP Encode Reference.")],
            **fields(io.Schema, search_aliases=["sample image", "example image", "reference picture"]),
        )

    @classmethod
    def validate_inputs(cls, example: str) -> bool | str:
        return True if example in examples() else f'there is no example "{example}"; choose one of the list'

    @classmethod
    def execute(cls, example: str) -> io.NodeOutput:
        return io.NodeOutput(load_example(example))
