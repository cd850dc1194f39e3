"""What only developers run inside ComfyUI."""
