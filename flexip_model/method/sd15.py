"""The sizes of Stable Diffusion 1.5, the base model (App. B.1), for all that need them as numbers."""

UNET_WIDTHS = (320, 640, 1280, 1280)
"""The UNet's `block_out_channels`."""
UNET_HEADS = 8
CONTEXT_WIDTH = 768
"""The width of what the UNet's cross-attention reads, that of the text encoder."""
VAE_WIDTHS = (128, 256, 512, 512)
"""The VAE's `block_out_channels`."""
LAYERS_PER_BLOCK = 2
LATENT_CHANNELS = 4
LATENT_FACTOR = 8
"""Pixels of a picture per value of its latent, each way."""
TEXT_VOCABULARY = 49408
TEXT_LENGTH = 77
"""Tokens of a prompt, which every tokenizer of this family pads and truncates to."""
TEXT_LAYERS = 12
TEXT_HEADS = 12
TEXT_FEED_FORWARD = 3072
