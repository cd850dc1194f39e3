"""The base learns where its places are, for whatever adapter will be trained beside it.

An adapter has keys and values of its own, and the base's queries. Those of a base that only ever read words do not tell
left from right (`demo-model probe`), so no adapter could put a part of the reference where it belongs. Here every
cross-attention layer's queries learn to tell their row and column through a linear layer, thrown away afterwards, while
the UNet draws what it drew before. No reference takes part, so all kinds of adapters begin alike. Our choice: Stable
Diffusion's UNet was trained on a thousand times the data.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..scenes.words import LENGTH as TEXT_LENGTH
from ..stages.base import Base
from ..stages.networks import GRID, TEXT_WIDTH, place_waves
from .drawing import Noise, weighted_errors
from .pool import Pool
from .run import Run
from .stepper import Pace, Stepper, Tensors, one_thread_each, shares_of, twins

EMPTY = 0.1
"""Share of empty prompts, for guidance."""
TOLD = 0.3
"""Weight of the places in the loss, beside that of the pictures."""
LAYERS = "attn2.to_q"
SMALLEST = 4
"""Places in a row from which a layer must tell them."""
FREQUENCIES = 6
"""Of the waves that a query must tell of its row, and of its column, at most: as many as a head of the finest layers
has room for."""


class Places(nn.Module):
    """The linear layers that read the queries of a UNet's cross-attention."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.read = nn.ModuleDict(
            {key: nn.Linear(layer.out_features, 4 * FREQUENCIES) for key, layer in _layers(unet).items()}
        )

    def forward(self, queries: dict[str, Tensor]) -> Tensor:
        """Queries (n, N, w) of every layer to the mean squared error of what they tell, 1 where they tell nothing."""
        errors = []
        for key, read in self.read.items():
            side = round(queries[key].shape[1] ** 0.5)
            if side < SMALLEST:
                continue
            waves = place_waves(side, 4 * min(FREQUENCIES, side // 2)).to(queries[key])
            waves = (waves - waves.mean(0)) / waves.std(0, correction=0)
            errors.append((read(queries[key])[..., : waves.shape[1]] - waves).square().mean())
        return torch.stack(errors).mean()


def watch(unet: nn.Module) -> dict[str, Tensor]:
    """What holds, after each run of the UNet, the queries of its cross-attention, layer by layer."""
    found: dict[str, Tensor] = {}
    for key, layer in _layers(unet).items():

        def note(_layer: nn.Module, _given: tuple[Tensor, ...], made: Tensor, key: str = key) -> None:
            found[key] = made

        layer.register_forward_hook(note)
    return found


def _layers(unet: nn.Module) -> dict[str, Any]:
    return {name.replace(".", "_"): layer for name, layer in unet.named_modules() if name.endswith(LAYERS)}


def train_places(base: Base, pool: Pool, pace: Pace, work: Path, deadline: float) -> bool:
    """Train the base's UNet; False if the leg ended first."""
    device, batch = pool.latents.device, pace.batch
    base.text.requires_grad_(False).eval()
    teacher = copy.deepcopy(base.unet).eval().requires_grad_(False)
    unet = base.unet.train().requires_grad_(True)
    places = Places(unet).to(device)
    if device.type == "cuda":
        unet.to(memory_format=torch.channels_last)
        teacher.to(memory_format=torch.channels_last)
    noise = Noise(device)
    inputs = {
        "noisy": torch.zeros(batch, 4, GRID, GRID, device=device),
        "target": torch.zeros(batch, 4, GRID, GRID, device=device),
        "steps": torch.zeros(batch, device=device, dtype=torch.long),
        "mask": torch.zeros(batch, GRID, GRID, device=device),
        "text": torch.zeros(batch, TEXT_LENGTH, TEXT_WIDTH, device=device),
    }

    @torch.no_grad()
    def refill(_turn: int) -> None:
        picked = torch.randint(len(pool), (batch,), device=device)
        noisy, _, steps = noise(pool.latents[picked].float())
        text = base.read(pool.prompts(picked, torch.rand(batch, device=device) < EMPTY, TEXT_LENGTH))
        found = {"noisy": noisy, "steps": steps, "text": text, "mask": pool.mask[picked]}
        for name, value in {**found, "target": teacher(noisy, steps, text).sample}.items():
            inputs[name].copy_(value)

    def loss_of(network: nn.Module, queries: dict[str, Tensor], i: Tensors) -> dict[str, Tensor]:
        picture = weighted_errors(network(i["noisy"], i["steps"], i["text"]).sample, i["target"], i["mask"]).mean()
        told = places(queries)
        return {"loss": picture + TOLD * told, "picture": picture, "places": told}

    with one_thread_each(device) as threads:
        networks = twins(unet, shares_of(batch, threads))
        loss, *also = (partial(loss_of, network, watch(network)) for network in networks)
        trained = {**{f"unet.{n}": p for n, p in unet.named_parameters()}, **dict(places.named_parameters())}
        stepper = Stepper(trained, loss, inputs, pace, also=also)
        done = Run("places", work, {"places": stepper}, refill, pace=pace, deadline=deadline).go()
    if done:
        stepper.use_average()
    return done
