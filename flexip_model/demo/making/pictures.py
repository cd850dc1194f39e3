"""What sees and codes pictures: the VAE, the CLIP-like picture tower and the DINO-like encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..scenes.painter import Painter
from ..stages import vae as vae_stage
from ..stages.encoders import DinoTrainer, SightTrainer
from ..stages.networks import GRID
from .run import Run
from .stepper import Pace, Stepper, parameters

NORMALIZED_ON = 256
"""Pictures on which the VAE's latents are normalized."""
MASKED = 0.4
"""Share of the patches that the DINO-like encoder does not see, in every second picture."""


class Targets:
    """Targets of a drawing on the device, painted a batch at a time."""

    def __init__(self, painter: Painter, rows: dict[str, Tensor], ids: Tensor) -> None:
        self.painter, self.rows, self.ids = painter, rows, ids

    def pick(self, batch: int) -> Tensor:
        """Numbers of random targets."""
        return torch.randint(len(self.ids), (batch,), device=self.painter.device)

    def paint(self, picked: Tensor, kind: str = "targets") -> tuple[Tensor, Tensor]:
        """See `Painter`."""
        return self.painter(self.rows[kind][picked])


def train_vae(model: Any, targets: Targets, pace: Pace, work: Path, deadline: float) -> bool:
    """Train the VAE; False if the leg ended first. Before, so that a new one is as one that is made, and afterwards its
    latents have unit deviation (`vae.normalize`)."""
    vae_stage.normalize(model.eval(), targets.paint(targets.pick(NORMALIZED_ON))[0])
    model.requires_grad_(True).train()
    device = targets.painter.device
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    size = targets.painter.size
    inputs = {
        "pixels": torch.zeros(pace.batch, 3, size, size, device=device),
        "noise": torch.zeros(pace.batch, 4, size // 8, size // 8, device=device),
    }
    stepper = Stepper(
        parameters(model), lambda i: vae_stage.losses(model, i["pixels"], i["noise"]), inputs, pace, bf16=False
    )

    def refill(_turn: int) -> None:
        inputs["pixels"].copy_(targets.paint(targets.pick(pace.batch))[0])
        inputs["noise"].normal_()

    if not Run("vae", work, {"vae": stepper}, refill, pace=pace, deadline=deadline).go():
        return False
    stepper.use_average()
    model.eval().requires_grad_(False)
    vae_stage.normalize(model, targets.paint(targets.pick(NORMALIZED_ON))[0])
    return True


def train_sight(
    model: SightTrainer,
    pooled: Callable[[Tensor], Tensor],
    targets: Targets,
    pace: Pace,
    work: Path,
    deadline: float,
) -> bool:
    """Train the picture tower; `pooled` makes the frozen text encoder's final states (n, 128) of ids."""
    device, size = targets.painter.device, targets.painter.size
    inputs = {name: torch.zeros(pace.batch, 3, size, size, device=device) for name in ("pixels", "other")}
    inputs["text"] = pooled(targets.ids[:1, 0]).repeat(pace.batch, 1)
    stepper = Stepper(parameters(model), lambda i: model.losses(**i), inputs, pace)

    def refill(_turn: int) -> None:
        picked = targets.pick(pace.batch)
        inputs["pixels"].copy_(targets.paint(picked)[0])
        inputs["other"].copy_(targets.paint(picked, "variant")[0])
        which = torch.randint(targets.ids.shape[1], picked.shape, device=device)
        inputs["text"].copy_(pooled(targets.ids[picked, which]))

    done = Run("clip", work, {"clip": stepper}, refill, pace=pace, deadline=deadline).go()
    if done:
        stepper.use_average()
    return done


def train_dino(model: DinoTrainer, vae: Any, targets: Targets, pace: Pace, work: Path, deadline: float) -> bool:
    """Train the DINO-like encoder, beside the finished VAE."""
    device, size, shown = targets.painter.device, targets.painter.size, pace.batch // 2
    inputs = {
        "pixels": torch.zeros(pace.batch, 3, size, size, device=device),
        "alpha": torch.zeros(pace.batch, 1, size, size, device=device),
        "masked": torch.zeros(pace.batch, GRID**2, device=device, dtype=torch.bool),
        "latents": torch.zeros(shown, 4, GRID, GRID, device=device),
    }
    stepper = Stepper(parameters(model), lambda i: model.losses(**i), inputs, pace)

    def refill(_turn: int) -> None:
        pixels, alpha = targets.paint(targets.pick(pace.batch))
        inputs["pixels"].copy_(pixels)
        inputs["alpha"].copy_(alpha.clamp(0, 1))
        inputs["masked"].copy_(torch.rand(pace.batch, GRID**2, device=device) < MASKED)
        inputs["masked"][:shown] = False
        with torch.no_grad():
            code = vae.encode(pixels[:shown]).latent_dist.mean * float(vae.config.scaling_factor)
        inputs["latents"].copy_(code)

    done = Run("dino", work, {"dino": stepper}, refill, pace=pace, deadline=deadline).go()
    if done:
        stepper.use_average()
    return done
