"""Files of weights: safetensors in and out, what a file is, the adapter file, and IP-Adapter files taken in."""
