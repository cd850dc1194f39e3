"""The base learns where its places are, for whatever adapter will be trained beside it; then P's keys are found there.

An adapter has keys and values of its own, and the base's queries. Those of a base that only ever read words do not tell
left from right (`demo-model probe`), so no adapter could put a part of the reference where it belongs. Here the queries
of the cross-attention on the way up learn to tell their row and column through linear layers, thrown away afterwards,
while the UNet draws what it drew before. No reference takes part, so all kinds of adapters begin alike. Our choice:
Stable Diffusion's UNet was trained on a thousand times the data.

The layers that make queries learn fast, as the text's keys hardly see what is put beside what they look for; what lies
before them on the way up learns slowly. Where the whole UNet learned at one rate, its pictures changed eight times
as much for queries that told as much (docs/small-model.md).

Then FlexIP's keys: those of each of P's queries learn to be found by the frozen base's query of the same place.
Attention that is spread over all places gives keys hardly a gradient, and values nothing to say.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..scenes.words import LENGTH as TEXT_LENGTH
from ..stages.base import Base
from ..stages.networks import ENCODER_WIDTH, GRID, TEXT_WIDTH
from ..stages.queries import Keys, Places, Watched
from ..stages.reader import Reader
from ..stages.sampling import GUIDANCE
from .drawing import Noise, weighted_errors
from .pool import Pool
from .run import Run
from .stepper import Pace, Stepper, Tensors, one_thread_each, parameters, shares_of, twins

TOLD = 0.3
"""Weight of the places in the loss, beside that of the pictures."""
SLOW = 0.05
"""Learning rate of what does not make queries, as a share of the pace's."""
GUIDED = 0.2
"""Weight of the pictures under guidance, beside that of those with a prompt and without. Guidance takes the difference
of the two three times: errors that are small beside the pictures are not beside what a word changes."""


def train_places(base: Base, pool: Pool, pace: Pace, work: Path, deadline: float) -> bool:
    """Train the base's UNet; False if the leg ended first.

    Half of the batch has prompts, the other half the same noisy latents and the empty prompt.
    """
    device, pairs = pool.latents.device, pace.batch // 2
    base.text.requires_grad_(False).eval()
    teacher = copy.deepcopy(base.unet).eval().requires_grad_(False)
    unet = base.unet.train().requires_grad_(False)
    unet.up_blocks.requires_grad_(True)
    places = Places(unet).to(device)
    if device.type == "cuda":
        unet.to(memory_format=torch.channels_last)
        teacher.to(memory_format=torch.channels_last)
    noise = Noise(device)
    inputs = {
        "noisy": torch.zeros(pairs, 2, 4, GRID, GRID, device=device),
        "target": torch.zeros(pairs, 2, 4, GRID, GRID, device=device),
        "steps": torch.zeros(pairs, 2, device=device, dtype=torch.long),
        "mask": torch.zeros(pairs, GRID, GRID, device=device),
        "text": torch.zeros(pairs, 2, TEXT_LENGTH, TEXT_WIDTH, device=device),
    }

    @torch.no_grad()
    def refill(_turn: int) -> None:
        picked = torch.randint(len(pool), (pairs,), device=device)
        noisy, _, steps = noise(pool.latents[picked].float())
        picked, noisy, steps = (x.repeat_interleave(2, 0) for x in (picked, noisy, steps))
        text = base.read(pool.prompts(picked, torch.arange(2 * pairs, device=device) % 2 == 1, TEXT_LENGTH))
        found = {"noisy": noisy, "steps": steps, "text": text, "target": teacher(noisy, steps, text).sample}
        for name, value in found.items():
            inputs[name].copy_(value.unflatten(0, (pairs, 2)))
        inputs["mask"].copy_(pool.mask[picked[::2]])

    def loss_of(network: nn.Module, queries: dict[str, Tensor], i: Tensors) -> dict[str, Tensor]:
        guess = network(i["noisy"].flatten(0, 1), i["steps"].flatten(), i["text"].flatten(0, 1)).sample
        mask = i["mask"].repeat_interleave(2, 0)
        picture = weighted_errors(guess, i["target"].flatten(0, 1), mask).mean()
        drawn, wanted = (x[:, 1] + GUIDANCE * (x[:, 0] - x[:, 1]) for x in (guess.unflatten(0, (-1, 2)), i["target"]))
        guided = weighted_errors(drawn, wanted, i["mask"]).mean()
        told = places(queries)
        loss = picture + GUIDED * guided + TOLD * told
        return {"loss": loss, "picture": picture, "guided": guided, "places": told}

    with one_thread_each(device) as threads:
        networks = twins(unet, shares_of(pairs, threads))
        loss, *also = (partial(loss_of, network, Watched(network)) for network in networks)
        trained = {**{f"unet.{name}": p for name, p in parameters(unet).items()}, **parameters(places)}
        slowed = {name for name in trained if name.startswith("unet.") and not name.endswith("attn2.to_q.weight")}
        stepper = Stepper(trained, loss, inputs, pace, also=also, slowed=slowed, slow=SLOW)
        done = Run("places", work, {"places": stepper}, refill, pace=pace, deadline=deadline).go()
    if done:
        stepper.use_average()
    return done


def train_keys(base: Base, reader: Reader, keys: Keys, pool: Pool, pace: Pace, work: Path, deadline: float) -> bool:
    """Train the keys of the finished reader's tokens beside the finished base; False if the leg ended first."""
    device, batch = pool.latents.device, pace.batch
    for frozen in (base, reader):
        frozen.requires_grad_(False).eval()
    keys.begin(base.unet)
    keys.requires_grad_(True).train()
    noise, found = Noise(device), Watched(base.unet)
    tokens = torch.zeros(batch, GRID**2, ENCODER_WIDTH, device=device)
    inputs: dict[str, Tensor] = {"tokens": tokens}

    @torch.no_grad()
    def refill(_turn: int) -> None:
        picked = torch.randint(len(pool), (batch,), device=device)
        noisy, _, steps = noise(pool.latents[picked].float())
        base.unet(noisy, steps, base.read(pool.prompts(picked, torch.zeros_like(picked).bool(), TEXT_LENGTH)))
        tokens.copy_(reader.tokens(pool.references["same"]["patches"][picked].float()))
        for name, queries in found.items():
            if name in inputs:
                inputs[name].copy_(queries)
            else:
                inputs[name] = queries

    def loss(i: Tensors) -> dict[str, Tensor]:
        return {"loss": keys({name: value for name, value in i.items() if name != "tokens"}, i["tokens"])}

    stepper = Stepper(parameters(keys), loss, inputs, pace)
    done = Run("keys", work, {"keys": stepper}, refill, pace=pace, deadline=deadline).go()
    found.stop()
    if done:
        stepper.use_average()
    return done
