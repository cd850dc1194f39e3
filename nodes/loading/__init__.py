"""Files that the nodes load: where they lie, and a folder of parts built from ComfyUI's own classes."""
