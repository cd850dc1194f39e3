"""The sampling loop of previews and checks: DDIM with classifier-free guidance.

Letters: B pictures, s the latent's side, W the text's width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def denoise(
    unet: Any, scheduler: Any, latents: Tensor, text: Tensor, *, steps: int, guidance: float, **more: Any
) -> Tensor:
    """Noise to latents.

    Args:
        unet: diffusers' UNet; where an adapter is injected, its host's condition is for 2B samples.
        scheduler: any of diffusers'; its config is read for DDIM.
        latents: (B, 4, s, s) standard normal noise.
        text: (2B, 77, W): what to draw, then what not to draw.
        steps: how many the sampler makes.
        guidance: the scale of classifier-free guidance; 1 is none.
        more: what else each call of the UNet gets, for 2B samples.

    Returns:
        (B, 4, s, s) float32.
    """
    from diffusers import DDIMScheduler

    ddim: Any = DDIMScheduler.from_config(scheduler.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    ddim.set_timesteps(steps, device=latents.device)
    like = next(unet.parameters()).dtype
    latents = latents.float()
    for timestep in ddim.timesteps:
        model_pred = unet(torch.cat([latents, latents]).to(like), timestep, text.to(like), **more).sample.float()
        positive, negative = model_pred.chunk(2)
        latents = ddim.step(negative + guidance * (positive - negative), timestep, latents).prev_sample
    return latents
