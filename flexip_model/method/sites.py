"""The 16 cross-attention sites of SD1.5's UNet, named once for both hosts.

A narrower UNet of the same structure (the model that ships with the pack) has the same sites.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """One cross-attention layer.

    Attributes:
        name: diffusers' module path of the `Transformer2DModel`, for example `down_blocks.0.attentions.0`.
        comfy: ComfyUI's (block, number), for example `("input", 1)`.
        level: index into the UNet's `block_out_channels`; gives the layer's width.
    """

    name: str
    comfy: tuple[str, int]
    level: int

    @property
    def diffusers(self) -> str:
        """diffusers' module path of the attention layer."""
        return f"{self.name}.transformer_blocks.0.attn2"


def _sd15_sites() -> tuple[Site, ...]:
    down = [
        Site(f"down_blocks.{block}.attentions.{layer}", ("input", 1 + 3 * block + layer), block)
        for block in range(3)
        for layer in range(2)
    ]
    middle = [Site("mid_block.attentions.0", ("middle", 0), 3)]
    up = [
        Site(f"up_blocks.{block}.attentions.{layer}", ("output", 3 * block + layer), 3 - block)
        for block in range(1, 4)
        for layer in range(3)
    ]
    return (*down, *middle, *up)


SD15_SITES: tuple[Site, ...] = _sd15_sites()
SITE_BY_COMFY: dict[tuple[str, int], Site] = {site.comfy: site for site in SD15_SITES}
