"""Names and shapes of every tensor of a Stable Diffusion 1.5 checkpoint, in the layout that ComfyUI's loader reads.

Counts to check against: UNet 859,520,964, VAE 83,653,863, text encoder 123,060,480.
"""

from __future__ import annotations

from ..method import sd15

Shapes = dict[str, tuple[int, ...]]
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."


class _Table:
    """Collects shapes under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.shapes: Shapes = {}

    def weight(self, name: str, *shape: int, bias: bool = True) -> None:
        self.shapes[f"{self.prefix}{name}.weight"] = shape
        if bias:
            self.shapes[f"{self.prefix}{name}.bias"] = shape[:1]

    def conv(self, name: str, into: int, out: int, side: int = 3) -> None:
        self.weight(name, out, into, side, side)

    def unet_resnet(self, name: str, into: int, out: int) -> None:
        self.weight(f"{name}.in_layers.0", into)
        self.conv(f"{name}.in_layers.2", into, out)
        self.weight(f"{name}.emb_layers.1", out, 1280)
        self.weight(f"{name}.out_layers.0", out)
        self.conv(f"{name}.out_layers.3", out, out)
        if into != out:
            self.conv(f"{name}.skip_connection", into, out, 1)

    def unet_transformer(self, name: str, width: int) -> None:
        self.weight(f"{name}.norm", width)
        self.conv(f"{name}.proj_in", width, width, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, context in (("attn1", width), ("attn2", sd15.CONTEXT_WIDTH)):
            self.weight(f"{block}.{attention}.to_q", width, width, bias=False)
            self.weight(f"{block}.{attention}.to_k", width, context, bias=False)
            self.weight(f"{block}.{attention}.to_v", width, context, bias=False)
            self.weight(f"{block}.{attention}.to_out.0", width, width)
        self.weight(f"{block}.ff.net.0.proj", 8 * width, width)
        self.weight(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            self.weight(f"{block}.{norm}", width)
        self.conv(f"{name}.proj_out", width, width, 1)

    def vae_resnet(self, name: str, into: int, out: int) -> None:
        self.weight(f"{name}.norm1", into)
        self.conv(f"{name}.conv1", into, out)
        self.weight(f"{name}.norm2", out)
        self.conv(f"{name}.conv2", out, out)
        if into != out:
            self.conv(f"{name}.nin_shortcut", into, out, 1)

    def vae_middle(self, name: str, width: int) -> None:
        self.vae_resnet(f"{name}.block_1", width, width)
        self.weight(f"{name}.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.attn_1.{part}", width, width, 1)
        self.vae_resnet(f"{name}.block_2", width, width)


def unet_shapes() -> Shapes:
    """The UNet: widths 320, 640, 1280, 1280, two layers a level, attention on the first three."""
    table, widths = _Table(UNET), sd15.UNET_WIDTHS
    table.weight("time_embed.0", 1280, 320)
    table.weight("time_embed.2", 1280, 1280)
    table.conv("input_blocks.0.0", 4, 320)
    skips, width, block = [320], 320, 1
    for level, out in enumerate(widths):
        for _ in range(2):
            table.unet_resnet(f"input_blocks.{block}.0", width, out)
            if level < 3:
                table.unet_transformer(f"input_blocks.{block}.1", out)
            width = out
            skips.append(width)
            block += 1
        if level < 3:
            table.conv(f"input_blocks.{block}.0.op", width, width)
            skips.append(width)
            block += 1
    table.unet_resnet("middle_block.0", 1280, 1280)
    table.unet_transformer("middle_block.1", 1280)
    table.unet_resnet("middle_block.2", 1280, 1280)
    for level, out in reversed(list(enumerate(widths))):
        for layer in range(3):
            name = f"output_blocks.{3 * (3 - level) + layer}"
            table.unet_resnet(f"{name}.0", width + skips.pop(), out)
            width = out
            if level < 3:
                table.unet_transformer(f"{name}.1", out)
            if layer == 2 and level > 0:
                table.conv(f"{name}.{2 if level < 3 else 1}.conv", out, out)
    table.weight("out.0", 320)
    table.conv("out.2", 320, 4)
    return table.shapes


def vae_shapes() -> Shapes:
    """The VAE: widths 128, 256, 512, 512, factor 8, 4 latent channels."""
    table, widths = _Table(VAE), sd15.VAE_WIDTHS
    table.conv("encoder.conv_in", 3, 128)
    width = 128
    for level, out in enumerate(widths):
        for layer in range(2):
            table.vae_resnet(f"encoder.down.{level}.block.{layer}", width, out)
            width = out
        if level < 3:
            table.conv(f"encoder.down.{level}.downsample.conv", out, out)
    table.vae_middle("encoder.mid", 512)
    table.weight("encoder.norm_out", 512)
    table.conv("encoder.conv_out", 512, 8)
    table.conv("decoder.conv_in", 4, 512)
    table.vae_middle("decoder.mid", 512)
    for level, out in reversed(list(enumerate(widths))):
        for layer in range(3):
            table.vae_resnet(f"decoder.up.{level}.block.{layer}", width, out)
            width = out
        if level > 0:
            table.conv(f"decoder.up.{level}.upsample.conv", out, out)
    table.weight("decoder.norm_out", 128)
    table.conv("decoder.conv_out", 128, 3)
    table.conv("quant_conv", 8, 8, 1)
    table.conv("post_quant_conv", 4, 4, 1)
    return table.shapes


def text_shapes() -> Shapes:
    """The text encoder, CLIP ViT-L/14's: 12 layers, width 768."""
    table, width = _Table(TEXT), sd15.CONTEXT_WIDTH
    table.weight("embeddings.token_embedding", sd15.TEXT_VOCABULARY, width, bias=False)
    table.weight("embeddings.position_embedding", sd15.TEXT_LENGTH, width, bias=False)
    for layer in range(sd15.TEXT_LAYERS):
        name = f"encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            table.weight(f"{name}.self_attn.{part}", width, width)
        table.weight(f"{name}.mlp.fc1", sd15.TEXT_FEED_FORWARD, width)
        table.weight(f"{name}.mlp.fc2", width, sd15.TEXT_FEED_FORWARD)
        table.weight(f"{name}.layer_norm1", width)
        table.weight(f"{name}.layer_norm2", width)
    table.weight("final_layer_norm", width)
    return table.shapes


def checkpoint_shapes() -> Shapes:
    """The whole checkpoint."""
    return {**unet_shapes(), **vae_shapes(), **text_shapes()}
