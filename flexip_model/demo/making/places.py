"""The base learns where its places are, for whatever adapter will be trained beside it.

An adapter has keys and values of its own, and the base's queries. Those of a base that only ever read words do not tell
left from right (a linear reader of them leaves 70 to 100 % of it, and of above and below 11 to 19 %), so no adapter
could put a part of the reference where it belongs. Here the UNet also reads the places of references, through keys and
values that are thrown away afterwards, so that all adapters begin alike; in every second sample it is told nothing but
the prompt, and must draw what it drew before. Our choice: Stable Diffusion has this from a thousand times the data.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ...hosts.diffusers import Condition, FlexIPHost, inject
from ...method.adapters import FlexIPAdapter
from ..scenes.words import LENGTH as TEXT_LENGTH
from ..stages.base import Base
from ..stages.networks import ADAPTER, ENCODER_WIDTH, GRID, TEXT_WIDTH
from ..stages.reader import Reader
from .drawing import Noise, weighted_errors
from .pool import Pool
from .run import Run
from .stepper import Pace, Stepper, Tensors, one_thread_each, shares_of

EMPTY = 0.1
"""Share of empty prompts, for guidance."""


def train_places(base: Base, reader: Reader, pool: Pool, pace: Pace, work: Path, deadline: float) -> bool:
    """Train the base's UNet beside the finished reader; False if the leg ended first."""
    device, batch = pool.latents.device, pace.batch
    reader.eval().requires_grad_(False)
    base.text.requires_grad_(False).eval()
    teacher = copy.deepcopy(base.unet).eval().requires_grad_(False)
    adapter = FlexIPAdapter(ADAPTER)
    adapter.copy_text_attention(base.unet)
    adapter.to(device).requires_grad_(False)
    read = {name: p for name, p in adapter.named_parameters() if ".preservation." in name}
    unet = base.unet.train().requires_grad_(True)
    if device.type == "cuda":
        unet.to(memory_format=torch.channels_last)
        teacher.to(memory_format=torch.channels_last)
    trained = {**{f"unet.{name}": p for name, p in unet.named_parameters()}, **read}
    for parameter in read.values():
        parameter.requires_grad_(True)
    noise, told = Noise(device), torch.arange(batch, device=device) % 2 == 1
    inputs = {
        "noisy": torch.zeros(batch, 4, GRID, GRID, device=device),
        "target": torch.zeros(batch, 4, GRID, GRID, device=device),
        "steps": torch.zeros(batch, device=device, dtype=torch.long),
        "mask": torch.zeros(batch, GRID, GRID, device=device),
        "text": torch.zeros(batch, TEXT_LENGTH, TEXT_WIDTH, device=device),
        "patches": torch.zeros(batch, GRID**2, ENCODER_WIDTH, device=device),
        "drawn": torch.zeros(batch, device=device),
    }

    @torch.no_grad()
    def refill(_turn: int) -> None:
        picked = torch.randint(len(pool), (batch,), device=device)
        noisy, target, steps = noise(pool.latents[picked].float())
        empty = torch.rand(batch, device=device) < EMPTY
        text = base.read(pool.prompts(picked, empty, TEXT_LENGTH))
        target[told] = teacher(noisy[told], steps[told], text[told]).sample
        patches = pool.references["same"]["patches"][picked].float()
        found = {"noisy": noisy, "target": target, "steps": steps, "text": text, "mask": pool.mask[picked]}
        for name, value in {**found, "patches": patches, "drawn": torch.rand(batch, device=device)}.items():
            inputs[name].copy_(value)

    def loss_of(network: nn.Module, host: FlexIPHost, i: Tensors) -> dict[str, Tensor]:
        of_it = told[: len(i["drawn"])]
        # Likeness near 1 is the harder thing to learn, as in `spread_gamma`.
        share = torch.where(of_it, 0.0, i["drawn"].pow(1 / 3))[:, None, None]
        host.condition = Condition(reader.tokens(i["patches"]), None, share)
        error = weighted_errors(network(i["noisy"], i["steps"], i["text"]).sample, i["target"], i["mask"])
        half = len(error) / 2
        return {"loss": error.mean(), "shown": (error * ~of_it).sum() / half, "told": (error * of_it).sum() / half}

    with one_thread_each(device) as threads:
        # Copies that have the same parameters, since each has the reference of its share.
        copies = [
            copy.deepcopy(unet, {id(p): p for p in unet.parameters()}) for _ in range(shares_of(batch, threads) - 1)
        ]
        hosts = [inject(network, adapter) for network in (unet, *copies)]
        loss, *also = (partial(loss_of, host.unet, host) for host in hosts)
        stepper = Stepper(trained, loss, inputs, pace, also=also)
        done = Run("places", work, {"places": stepper}, refill, pace=pace, deadline=deadline).go()
    hosts[0].eject()
    if done:
        stepper.use_average()
    return done
