"""The adapters that are trained beside the small base: FlexIP, the two IP-Adapters, and FlexIP with parts left out.

All train on the same batches for as many steps, but for the ablations, whose budget is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...common.errors import FlexIPError
from ...hosts.condition import Condition
from ...method.adapters import Adapter, FlexIPAdapter, ReferenceFeatures, create_adapter
from ...method.config import FlexIPConfig
from ...method.gate import spread_gamma
from .networks import ADAPTER, ENCODER_WIDTH, GRID
from .reader import place_queries

GAMMA_SPREAD = 1.0
"""The trainer's `gamma_spread`, as in the config `demo`."""
STRANGE_BELOW = 0.2
"""γ below which every second variant sample of FlexIP's has a reference of something else (our choice). All others show
what the prompt names, so S would never learn which of the two to follow where they disagree."""
VARIANTS = slice(1, None, 4)
"""Samples of the variant kind: every fourth (our choice). S learns its part sooner than P does."""
SECOND = slice(VARIANTS.start, None, 2 * VARIANTS.step)
"""Every second sample of those of the variant kind."""
CONFIGS = {
    "flexip": ADAPTER,
    "ip-adapter": replace(ADAPTER, kind="ip-adapter", queries=4),
    "ip-adapter-plus": replace(ADAPTER, kind="ip-adapter-plus", queries=16),
}
"""IP-Adapter with its published 4 tokens, IP-Adapter-Plus with its 16, both of this model's widths."""


@dataclass(frozen=True)
class Variation:
    """What is left out or changed of FlexIP.

    Attributes:
        queries: N_L, a square number.
        moved: image samples have the subject elsewhere in the reference than in the target.
        s, cls, learned: whether S, the [CLS] token of P and its learned queries are there.
        gate: whether γ varies in training; otherwise both branches always count one half.
        strange: whether there are references of something else at small γ, see `STRANGE_BELOW`.
        image, variant: which kinds of samples there are.
    """

    queries: int = GRID**2
    moved: bool = False
    s: bool = True
    cls: bool = True
    learned: bool = True
    gate: bool = True
    strange: bool = True
    image: bool = True
    variant: bool = True


VARIATIONS = {
    "flexip": Variation(),
    "flexip-short": Variation(),
    "flexip-no_s": Variation(s=False),
    "flexip-no_cls": Variation(cls=False),
    "flexip-no_queries": Variation(learned=False),
    "flexip-no_gate": Variation(gate=False, strange=False),
    "flexip-no_strange": Variation(strange=False),
    "flexip-images": Variation(variant=False),
    "flexip-variants": Variation(image=False),
    "flexip-moved": Variation(moved=True),
    "flexip-moved_64": Variation(queries=64, moved=True),
    "flexip-moved_16": Variation(queries=16, moved=True),
}
"""FlexIP, FlexIP with the ablations' budget, and the ablations. The last three ask how many queries
it takes when the subject may stand elsewhere."""


def kind_and_seed(name: str) -> tuple[str, int]:
    """An adapter's kind, of `VARIATIONS` or `CONFIGS`, and its seed, of a name KIND-seedN.

    Raises:
        FlexIPError: it is no such name.
    """
    kind, _, seed = name.rpartition("-seed")
    known = {**CONFIGS, **VARIATIONS}
    if kind not in known or not seed.isdigit():
        raise FlexIPError(f"there is no adapter {name}; expected KIND-seedN with one of the kinds {', '.join(known)}")
    return kind, int(seed)


def new_adapter(name: str, unet: nn.Module) -> Adapter:
    """An untrained adapter of a name of `VARIATIONS` or `CONFIGS`; each learned query begins with a place of its own
    in the grid of the latents, and keys and values as copies of the base's text attention."""
    variation = VARIATIONS.get(name)
    config = CONFIGS[name] if variation is None else replace(ADAPTER, queries=variation.queries)
    adapter = create_adapter(config)
    place_queries(adapter)
    adapter.copy_text_attention(unet)
    if variation is not None and not variation.s:
        silence(adapter)
    return adapter


@torch.no_grad()
def silence(adapter: Adapter) -> None:
    """Let S add nothing, for good: its values are zero and stay so."""
    for name, weight in adapter.named_parameters():
        if name.endswith("personalization.to_v.weight"):
            weight.zero_()
            weight.requires_grad_(False)


def preservation(adapter: Adapter, variation: Variation, features: ReferenceFeatures) -> Tensor:
    """P without the tokens that a variation leaves out."""
    tokens = adapter.preservation(features)
    if not variation.cls:
        tokens = tokens[:, :-1]
    return tokens if variation.learned else tokens[:, -1:]


def features_of(config: FlexIPConfig, seen: dict[str, Tensor]) -> ReferenceFeatures:
    """What an adapter kind reads of a reference's cls (n, 128), hidden (n, 50, 128) and patches (n, 256, 128)."""
    if config.kind == "ip-adapter":
        return ReferenceFeatures(seen["cls"], seen["cls"].new_zeros(len(seen["cls"]), 0, ENCODER_WIDTH))
    return ReferenceFeatures(seen["cls"], seen["hidden" if config.kind == "ip-adapter-plus" else "patches"])


def strangers(variant: Tensor, drawn: Tensor) -> Tensor:
    """(n,) bool, the samples whose reference shows something else; see `STRANGE_BELOW`.

    Args:
        variant, drawn: of `condition_of`; `VARIANTS` are of the variant kind.
    """
    low = drawn > (1 - STRANGE_BELOW) ** 2  # of a variant sample γ is 1 - sqrt(drawn)
    second = torch.zeros_like(variant)
    second[SECOND] = True
    return variant & low & second


def condition_of(
    adapter: Adapter, variation: Variation, seen: dict[str, Tensor], text: Tensor, variant: Tensor, drawn: Tensor
) -> Condition:
    """What the UNet trains from.

    Args:
        seen: features of a reference each; zeros, and for IP-Adapter-Plus those of a picture of zeros, where it was
            dropped.
        text: (n, 77, 128).
        variant: (n,) bool, samples of the variant kind.
        drawn: (n,) evenly from [0, 1], for γ.
    """
    features = features_of(adapter.config, seen)
    p = preservation(adapter, variation, features)
    if not adapter.has_personalization:
        return Condition(p, None, torch.ones(1, 1, 1, device=p.device))
    assert isinstance(adapter, FlexIPAdapter)
    gamma = spread_gamma(adapter.gate(variant), variant, drawn, GAMMA_SPREAD)
    if not variation.gate:
        gamma = torch.full_like(gamma, 0.5)
    return Condition(p, adapter.personalization(text, features.cls), gamma)
