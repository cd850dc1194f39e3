"""Hosts: where the adapter's branches enter a UNet. diffusers' is here; ComfyUI's is the pack's `nodes/`."""
