"""What a UNet generates from: the tokens of a reference and a prompt, γ, and their keys and values at each site.

Letters: B the UNet's batch, N tokens of a branch, W token width, C a site's width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..common.errors import FlexIPError
from ..method import gate
from ..method.adapters import Adapter, SiteBranches
from ..method.attention import Branch, KeyValue

KeysValues = tuple[KeyValue | None, KeyValue | None]
"""The keys and values of P and of S at a site; None where a branch is left out."""


@dataclass(eq=False)
class Condition:
    """What the gated attention reads; one object serves all the steps of a run.

    Keys and values are projected before the first step and kept, so a new object is needed when the adapter's weights
    change (in training: each step, and with gradient checkpointing it stays set until the gradients are there). It is
    needed too when the UNet's batch changes (where guidance is switched off midway).

    Attributes:
        preservation: P, (B or 1, N, W); None leaves the branch out.
        personalization: S, (B or 1, N, W); None leaves the branch out.
        gamma: (B or 1, 1, 1), a user's (see `gate.gamma_tensor`); the adapter's calibration curve makes it the gate's.
        strength: factor on both branches; 0 gives the unpatched UNet exactly.

    Tokens and γ may be of any floating dtype and on any device.
    """

    preservation: Tensor | None
    personalization: Tensor | None
    gamma: Tensor
    strength: float = 1.0
    _projected: dict[SiteBranches, _Projected] = field(default_factory=dict, repr=False)
    _weighed: _Weighed | None = field(default=None, repr=False)

    def weights(self, calibration: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """The weights of P and S (`gate.weights`), each (B or 1, 1, 1): made once for all sites and steps of a run.

        They are given out on `device`: γ is mostly made on the CPU, and a copy to a GPU at each site would make the
        CPU wait there for all that the GPU has still to do.
        """
        held, rest = self._weighed, (self.strength, calibration, device)
        if held is None or held.gamma is not self.gamma or held.rest != rest:
            p, s = gate.weights(self.gamma, self.strength, calibration)
            held = self._weighed = _Weighed(self.gamma, rest, (p.to(device), s.to(device)))
        return held.made

    def project(self, branches: SiteBranches, like: Tensor) -> KeysValues:
        """Keys and values of P and S at a site, (B or 1, N, C).

        They are made where the adapter's weights are and in their dtype, and given out on the device of `like` in its
        dtype.
        """
        p, s = self.preservation, self.personalization
        held = self._projected.get(branches)
        if held is None or held.p is not p or held.s is not s or held.like != (like.dtype, like.device):
            of_p = None if p is None else _keys_values(branches.preservation, p, like)
            of_s = (
                None
                if s is None or branches.personalization is None
                else _keys_values(branches.personalization, s, like)
            )
            held = self._projected[branches] = _Projected(p, s, (like.dtype, like.device), (of_p, of_s))
        return held.made

    def check(self, batch: int, adapter: Adapter) -> None:
        """Look whether this fits a UNet that runs `batch` samples, and the adapter.

        Raises:
            FlexIPError: tokens or γ of another form or batch, S for an adapter that has no personalization branch.
        """
        gamma, sizes, width = self.gamma, {}, adapter.config.token_width
        if not isinstance(gamma, Tensor) or gamma.ndim != 3 or gamma.shape[1:] != (1, 1):
            found = f"of shape {tuple(gamma.shape)}" if isinstance(gamma, Tensor) else repr(gamma)
            raise FlexIPError(f"the condition's γ is {found}; expected (batch or 1, 1, 1), as gamma_tensor makes it")
        if self.personalization is not None and not adapter.has_personalization:
            raise FlexIPError(
                f"the condition has personalization tokens, which an adapter of kind {adapter.kind} does not read; "
                "expected None in their place"
            )
        for name, tokens in (("preservation", self.preservation), ("personalization", self.personalization)):
            if tokens is not None:
                if tokens.ndim != 3 or tokens.shape[2] != width:
                    raise FlexIPError(
                        f"the condition's {name} tokens are of shape {tuple(tokens.shape)}; expected (batch or 1, "
                        f"tokens, {width}), as this adapter's {name} makes them"
                    )
                sizes[f"{name} tokens"] = tokens.shape[0]
        sizes["γ"] = gamma.shape[0]
        if any(size not in (1, batch) for size in sizes.values()):
            raise FlexIPError(
                f"the condition has a batch of {', '.join(f'{size} ({name})' for name, size in sizes.items())} and "
                f"the UNet runs a batch of {batch}; expected 1 or the UNet's: set a new Condition for this batch, also "
                "where guidance is switched off midway"
            )


@dataclass(frozen=True, eq=False)
class _Projected:
    """Keys and values at a site, and what they were made of and for."""

    p: Tensor | None
    s: Tensor | None
    like: tuple[torch.dtype, torch.device]
    made: KeysValues


@dataclass(frozen=True, eq=False)
class _Weighed:
    """The gate's weights, and what they were made of and for: γ, and strength, calibration curve and device."""

    gamma: Tensor
    rest: tuple[float, tuple[float, ...], torch.device]
    made: tuple[Tensor, Tensor]


def _keys_values(branch: Branch, tokens: Tensor, like: Tensor) -> KeyValue:
    weight = branch.to_k.weight
    kind = weight.device.type
    tokens = tokens.to(weight.device)
    # Autocast, which the meta device has not, casts by itself, and a cast here would round gradients anew.
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        tokens = tokens.to(weight.dtype)
    k, v = branch(tokens)
    return k.to(like), v.to(like)
