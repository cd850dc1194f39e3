"""The queries of a UNet's cross-attention: what they tell of their places, and keys that are found by them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ...method.adapters import FlexIPAdapter
from ...method.sites import SD15_SITES
from .networks import ADAPTER, GRID, place_waves

SMALLEST = 4
"""Places in a row from which a layer must tell them."""
FREQUENCIES = 6
"""Of the waves that a query must tell of its row, and of its column, at most: as many as a head of the finest layers
has room for."""


class Places(nn.Module):
    """The linear layers that read the queries of a UNet's cross-attention on the way up, where a place's neighbors
    have been seen from every side."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        up = {name: layer.out_features for name, layer in _layers(unet).items() if name.startswith("up_")}
        self.read = nn.ModuleDict({_key(name): nn.Linear(width, 4 * FREQUENCIES) for name, width in up.items()})

    def forward(self, queries: dict[str, Tensor]) -> Tensor:
        """Queries (n, N, w) of every layer to the mean squared error of what they tell, 1 where they tell nothing."""
        errors = []
        for name, of_layer in queries.items():
            side = round(of_layer.shape[1] ** 0.5)
            if side < SMALLEST or _key(name) not in self.read:
                continue
            waves = waves_of(side, of_layer.device)
            errors.append((self.read[_key(name)](of_layer)[..., : waves.shape[1]] - waves).square().mean())
        return torch.stack(errors).mean()


@cache  # made on the processor, and a card's graph takes nothing from there
def waves_of(side: int, device: torch.device) -> Tensor:
    """Sines and cosines of the rows and columns of a grid, each of mean 0 and deviation 1: (side², 24 or fewer)."""
    waves = place_waves(side, 4 * min(FREQUENCIES, side // 2))
    return ((waves - waves.mean(0)) / waves.std(0, correction=0)).to(device)


class Watched(dict[str, Tensor]):
    """Holds, after each run of a UNet, the queries of its cross-attention by the site's name."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self._hooks = [
            layer.register_forward_hook(lambda _layer, _given, made, name=name: self.__setitem__(name, made))
            for name, layer in _layers(unet).items()
        ]

    def stop(self) -> None:
        """Watch no more."""
        for hook in self._hooks:
            hook.remove()


def _layers(unet: nn.Module) -> dict[str, Any]:
    """The layers that make them, by site."""
    return {site.name: unet.get_submodule(f"{site.diffusers}.to_q") for site in SD15_SITES}


def _key(name: str) -> str:
    return name.replace(".", "_")  # a ModuleDict's have no dots


class Keys(nn.Module):
    """P's keys at every site, of a reader's tokens."""

    def __init__(self) -> None:
        super().__init__()
        adapter, self._heads = FlexIPAdapter(ADAPTER), 1
        self.to_k = nn.ModuleDict({_key(site.name): adapter.site(site).preservation.to_k for site in SD15_SITES})

    @torch.no_grad()
    def begin(self, unet: nn.Module) -> None:
        """Take the UNet's keys of the text, as adapters do."""
        for site in SD15_SITES:
            own: Any = unet.get_submodule(site.diffusers)
            mine: Any = self.to_k[_key(site.name)]
            mine.weight.copy_(own.to_k.weight)
            self._heads = int(own.heads)

    def forward(self, queries: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """How little queries (n, N, w) of the sites find the tokens (n, 256, 128) of their own places: the mean cross
        entropy, 0 where each attends its own cells alone; ln 256 at the finest sites where it attends all alike."""
        lost = []
        for name, of_layer in queries.items():
            side = round(of_layer.shape[1] ** 0.5)
            if side < SMALLEST:
                continue
            keys = self.to_k[_key(name)](tokens)
            q, k = (x.unflatten(-1, (self._heads, -1)).transpose(1, 2) for x in (of_layer, keys))
            attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).log_softmax(-1)
            own = own_cells(side, attention.device)
            lost.append(-(attention * own).sum(-1).mean() - math.log((GRID // side) ** 2))
        return torch.stack(lost).mean()

    @torch.no_grad()
    def give(self, adapter: FlexIPAdapter) -> None:
        """Put them into an adapter."""
        for site in SD15_SITES:
            mine: Any = self.to_k[_key(site.name)]
            adapter.site(site).preservation.to_k.weight.copy_(mine.weight)


@cache
def own_cells(side: int, device: torch.device) -> Tensor:
    """For every place of a grid its cells among the latents', which count alike: (side², 256), each row's sum is 1."""
    place = torch.arange(GRID) // (GRID // side)
    cell = (place[:, None] * side + place).flatten()
    own = nn.functional.one_hot(cell, side**2).T.float()
    return (own / own.sum(1, keepdim=True)).to(device)
