"""The ComfyUI host: the nodes, the patch on the model's attention, and the loading of files.

The only place that imports ComfyUI. The mathematics is `flexip_model`'s.
"""

from comfy_api.latest import ComfyExtension, io

from .apply import FlexIPApply, FlexIPGammaSweep
from .demo import FlexIPLoadDemo
from .encode import FlexIPEncodeReference
from .example import FlexIPExampleImage
from .folders import register_folders
from .grid import FlexIPSweepGrid
from .load import FlexIPLoadAdapter, FlexIPLoadEncoders

register_folders()

# Written out: tools that list a pack's nodes without running it read these names from the source.
NODE_CLASS_MAPPINGS = {
    "FlexIPLoadEncoders": FlexIPLoadEncoders,
    "FlexIPLoadAdapter": FlexIPLoadAdapter,
    "FlexIPLoadDemo": FlexIPLoadDemo,
    "FlexIPExampleImage": FlexIPExampleImage,
    "FlexIPEncodeReference": FlexIPEncodeReference,
    "FlexIPApply": FlexIPApply,
    "FlexIPGammaSweep": FlexIPGammaSweep,
    "FlexIPSweepGrid": FlexIPSweepGrid,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FlexIPLoadEncoders": "Load FlexIP Encoders",
    "FlexIPLoadAdapter": "Load FlexIP Adapter",
    "FlexIPLoadDemo": "Load FlexIP Demo Model",
    "FlexIPExampleImage": "FlexIP Example Picture",
    "FlexIPEncodeReference": "FlexIP Encode Reference",
    "FlexIPApply": "Apply FlexIP",
    "FlexIPGammaSweep": "FlexIP γ Sweep",
    "FlexIPSweepGrid": "FlexIP Sweep Grid",
}


class FlexIPExtension(ComfyExtension):
    """The pack as ComfyUI's V3 interface registers it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes, in the order of a graph."""
        return list(NODE_CLASS_MAPPINGS.values())
