"""γ sweeps of validation subjects while a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..hosts.denoise import denoise
from ..hosts.diffusers import Condition, inject
from ..hosts.prompts import personalization, prompt_ids
from ..images.contact_sheet import draw_sheet
from ..images.preprocess import Box
from ..method.adapters import FlexIPAdapter, ReferenceFeatures
from ..method.gate import gamma_tensor
from .configs.options import TrainConfig
from .frozen import Frozen

if TYPE_CHECKING:
    from PIL.Image import Image

GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SUBJECTS = 4


@dataclass(frozen=True)
class Preview:
    """Validation subjects: a reference picture, how it is cropped (`preprocess.prepare`), and a prompt each."""

    references: list[Image]
    crops: list[str | Box]
    prompts: list[str]


def draw(preview: Preview, frozen: Frozen, adapter: FlexIPAdapter, config: TrainConfig) -> Image:
    """One picture with a row per subject and a column per γ of the gate."""
    from torchvision.transforms.functional import to_pil_image

    rows = [
        [
            to_pil_image(picture)
            for picture in sweep(
                preview,
                number,
                GAMMAS,
                frozen=frozen,
                adapter=adapter,
                config=config,
                steps=config.preview_steps,
                guidance=config.guidance,
            )
        ]
        for number in range(len(preview.references))
    ]
    return draw_sheet(rows, GAMMAS, preview.references, " | ".join(preview.prompts)[:120])


@torch.no_grad()
def sweep(
    preview: Preview,
    number: int,
    gammas: Sequence[float],
    *,
    frozen: Frozen,
    adapter: FlexIPAdapter,
    config: TrainConfig,
    steps: int,
    guidance: float,
) -> Tensor:
    """One subject at every γ of the gate, (n, 3, H, W) in [0, 1] on the CPU; all from the same noise, which is the
    subject's own at every call.

    Args:
        steps, guidance: of the sampling.
    """
    device = next(adapter.parameters()).device
    side = config.size // 2 ** (len(frozen.vae.config.block_out_channels) - 1)
    columns = len(gammas)
    own = inject(frozen.unet, adapter)
    try:
        seen = frozen.encoders.encode([preview.references[number]], crop=preview.crops[number])
        cls, patches = seen.cls.to(device), seen.patches.to(device)
        keep = None if seen.keep is None else torch.cat([seen.keep, torch.ones_like(seen.keep)]).to(device)
        features = ReferenceFeatures(
            torch.cat([cls, torch.zeros_like(cls)]), torch.cat([patches, torch.zeros_like(patches)]), keep
        )
        prompt, nothing = (prompt_ids(frozen.tokenizer, t, config.text_pieces) for t in (preview.prompts[number], ""))
        pieces = len(prompt) // len(nothing), 1
        text = frozen.encode_text(torch.stack([prompt, nothing.repeat(pieces[0])])).float()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            p, s = adapter.preservation(features), personalization(adapter, text, features.cls, pieces)
            p, s, text = (t.repeat_interleave(columns, 0) for t in (p, s, text))
            own.condition = Condition(p, s, gamma_tensor(list(gammas) * 2).to(device))
            noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(config.seed + number))
            latents = denoise(
                frozen.unet,
                frozen.scheduler,
                noise.expand(columns, -1, -1, -1).to(device),
                text,
                steps=steps,
                guidance=guidance,
            )
        return frozen.decode_latents(latents)
    finally:
        own.eject()
