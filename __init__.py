"""FlexIP for ComfyUI: ComfyUI loads this folder as a package and finds the nodes here."""

import sys

# A running ComfyUI has this module; pytest and linters import this file too, and without ComfyUI.
if "folder_paths" in sys.modules:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, FlexIPExtension

    WEB_DIRECTORY = "./web"

    async def comfy_entrypoint() -> FlexIPExtension:
        """What ComfyUI calls; the mappings name the same nodes for tools that read those."""
        return FlexIPExtension()

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY", "comfy_entrypoint"]
