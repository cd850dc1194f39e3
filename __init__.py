"""FlexIP for ComfyUI: ComfyUI loads this folder as a package and finds the nodes here."""

import sys

# A running ComfyUI has this module; pytest and linters import this file too, and without ComfyUI.
if "folder_paths" in sys.modules:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./web"

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
