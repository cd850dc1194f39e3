"""The ComfyUI host: the nodes, the patch on the model's attention, and the loading of files.

The only place that imports ComfyUI. The mathematics is `flexip_model`'s.
"""

import contextlib
import sys

from comfy_api.latest import ComfyExtension, io

from .apply import FlexIPApply, FlexIPGammaSweep
from .demo import FlexIPLoadDemo
from .encode import FlexIPEncodeReference
from .example import FlexIPExampleImage
from .grid import FlexIPSweepGrid
from .inside import FlexIPAttentionMaps, FlexIPRecordAttention
from .load import FlexIPLoadAdapter, FlexIPLoadEncoders
from .loading.folders import register_folders
from .scores.find_gamma import FlexIPFindGamma
from .scores.score import FlexIPScore


def let_log_write_gamma() -> None:
    """Make ComfyUI's log write γ as an escape where its code page, as of a Windows pipe, has none.

    ComfyUI opens it as strict: one γ in a message or a traceback would end its queue. Logs in UTF-8 stay as they are.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            "γ".encode(stream.encoding)
        except UnicodeEncodeError:
            with contextlib.suppress(AttributeError, ValueError):  # another pack's own kind of stream
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        except (AttributeError, TypeError, LookupError):
            pass


let_log_write_gamma()
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
    "FlexIPRecordAttention": FlexIPRecordAttention,
    "FlexIPAttentionMaps": FlexIPAttentionMaps,
    "FlexIPScore": FlexIPScore,
    "FlexIPFindGamma": FlexIPFindGamma,
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
    "FlexIPRecordAttention": "FlexIP Record Attention",
    "FlexIPAttentionMaps": "FlexIP Attention Maps",
    "FlexIPScore": "FlexIP Score",
    "FlexIPFindGamma": "FlexIP Find γ",
}


class FlexIPExtension(ComfyExtension):
    """The pack as ComfyUI's V3 interface registers it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes, in the order of a graph."""
        return list(NODE_CLASS_MAPPINGS.values())
