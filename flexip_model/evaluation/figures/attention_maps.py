"""Fig. 7 of any adapter: a picture is drawn through the diffusers host, watched, and shown with its maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...common.errors import FlexIPError
from ...encoders import Encoders, load_clip, load_dino
from ...encoders.pair import check_encoders
from ...files.adapter_file import build_adapter, load_adapter_file
from ...hosts.denoise import denoise
from ...hosts.diffusers import Condition, inject
from ...images.map_sheet import UNREAD, draw_map_sheet, rows_of
from ...method.adapters import Adapter, ReferenceFeatures
from ...method.gate import gamma_tensor
from ...method.inside.record import AttentionRecord
from ...method.inside.retrieval import on_grids, retrieval_maps
from ...method.sites import SD15_SITES, Site
from ..generate.base import Base, load_base

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Generation:
    """What is drawn.

    Attributes:
        prompt, negative: what to draw, and what not to.
        gamma: a user's, in [0, 1].
        strength: factor on both branches, above 0.
        seed: of the noise.
        steps: how many the sampler makes (DDIM).
        guidance: the scale of classifier-free guidance.
        size: pixels of a side; None: the base's own.

    Raises:
        FlexIPError: γ, steps or strength out of their range.
    """

    prompt: str
    negative: str = ""
    gamma: float = 0.5
    strength: float = 1.0
    seed: int = 0
    steps: int = 50
    guidance: float = 7.5
    size: int | None = None

    def __post_init__(self) -> None:
        gamma_tensor(self.gamma)
        if self.steps < 1 or not 0 < self.strength <= 5:
            raise FlexIPError(
                f"there are {self.steps} steps at strength {self.strength:g}; expected at least one step and a "
                "strength above 0, at most 5"
            )


@dataclass(frozen=True)
class Models:
    """An adapter with the base and the encoders that it works with, on one device."""

    base: Base
    adapter: Adapter
    encoders: Encoders

    @property
    def device(self) -> torch.device:
        return next(self.adapter.parameters()).device


def load_models(
    adapter: Path,
    base: Path,
    clip: Path,
    dino: Path | None,
    device: torch.device,
    base_configs: Path | None = None,
) -> Models:
    """Load everything in fp32; base and base_configs are `load_base`'s.

    Raises:
        FlexIPError: a file or folder that is missing or of another kind; encoders of other widths.
    """
    info, tensors = load_adapter_file(adapter)
    encoders = Encoders(load_clip(clip), None if dino is None else load_dino(dino))
    check_encoders(info.config, encoders.clip, encoders.dino)
    for module in filter(None, (encoders.clip, encoders.dino)):
        module.float().to(device)
    built = build_adapter(info, {name: tensor.float() for name, tensor in tensors.items()})
    return Models(
        load_base(base, base_configs).to(device, torch.float32), built.to(device).eval().requires_grad_(False), encoders
    )


@torch.no_grad()
def attention_maps(
    models: Models,
    reference: Image,
    generation: Generation,
    *,
    sites: Sequence[Site] = SD15_SITES,
    first: int = 1,
    last: int = 0,
) -> Image:
    """Draw a picture and lay it out with the maps of what attended to what.

    Args:
        reference: the whole picture is seen, padded with white to a square.
        sites: the layers whose mean is shown.
        first, last: the steps whose mean is shown, from 1; 0 as the last is the last one.

    Returns:
        RGB: the reference with what the resamplers read of it, the picture with the maps of queries, [CLS], S and text;
        both as attention weights and as contributions.

    Raises:
        FlexIPError: a size or steps out of their range, an adapter for another base.
    """
    from torchvision.transforms.functional import to_pil_image

    _check_size(generation.size, models.base)
    adapter, encoders = models.adapter, models.encoders
    views = encoders.look(reference, crop="pad")
    features = encoders.features(views, type(adapter)).to(models.device)
    retrieved = retrieval_maps(adapter, features)
    picture, record = _draw(models, features, generation)
    maps = record.mean(sites, first, last)
    seen, drawn = (to_pil_image(pixels) for pixels in (encoders.preview(views)[0].permute(2, 0, 1), picture))
    shown = [
        *rows_of(["reference"], [seen], *on_grids(retrieved), UNREAD),
        *rows_of([f"gamma {generation.gamma:g}"], [drawn], maps.weights, maps.contributions, maps.absent),
    ]
    return draw_map_sheet(shown)


def _draw(models: Models, features: ReferenceFeatures, generation: Generation) -> tuple[Tensor, AttentionRecord]:
    """The picture, (3, S, S) in [0, 1] on the CPU, and what its positive half attended to."""
    adapter, base = models.adapter, models.base
    null = models.encoders.null(1, type(adapter)).to(models.device)
    text = base.read([generation.prompt, generation.negative])
    p = torch.cat([adapter.preservation(features), adapter.preservation(null)])
    s = adapter.personalization(text, torch.cat([features.cls, null.cls])) if adapter.has_personalization else None
    side = (generation.size or base.size) // base.scale
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(generation.seed))
    host = inject(base.unet, adapter)
    try:
        host.condition = Condition(p, s, gamma_tensor(generation.gamma).to(models.device), generation.strength)
        with host.watch(slice(0, 1)) as record:
            latents = denoise(
                base.unet,
                base.scheduler,
                noise.to(models.device),
                text,
                steps=generation.steps,
                guidance=generation.guidance,
            )
    finally:
        host.eject()
    return base.decode(latents)[0], record


def _check_size(size: int | None, base: Base) -> None:
    if size is not None and (size < 64 or size % (8 * base.scale)):
        raise FlexIPError(
            f"the size is {size}; expected a multiple of {8 * base.scale}, at least 64, as the UNet halves the latent "
            "three times"
        )
