"""The 16 cross-attention sites of SD1.5's UNet, named once for both hosts.

A narrower UNet of the same structure (the model that ships with the pack) has the same sites.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..common.errors import FlexIPError

BLOCKS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
"""Short names of the UNet's three parts."""


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

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in tokens of the layer, by the latent's: each level halves them, rounded up."""
        for _ in range(self.level):
            height, width = -(-height // 2), -(-width // 2)
        return height, width


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


def sites_named(name: str) -> tuple[Site, ...]:
    """The sites of `down`, `mid` or `up`, or those whose names begin so (`up_blocks.1`, `up_blocks.1.attentions.2`).

    Raises:
        FlexIPError: there are none.
    """
    prefix = BLOCKS.get(name.strip().lower(), name.strip())
    chosen = tuple(site for site in SD15_SITES if site.name == prefix or site.name.startswith(f"{prefix}."))
    if not chosen:
        raise FlexIPError(
            f'there is no block "{name.strip()}"; expected down, mid, up or a name such as up_blocks.1.attentions.2'
        )
    return chosen


def choose_sites(text: str) -> tuple[Site, ...]:
    """The sites of a list of names with commas, "down, up_blocks.1", in the network's order; all where it is empty.

    Raises:
        FlexIPError: as `sites_named`.
    """
    named = [sites_named(part) for part in text.replace("\n", ",").split(",") if part.strip()]
    chosen = {site for sites in named for site in sites}
    return tuple(site for site in SD15_SITES if not named or site in chosen)
