"""The adapter's parts by name, for what a stage trains and for the norms of gradients."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

Part = Literal[
    "queries",
    "resampler_queries",
    "project_retrieval",
    "preservation_kv",
    "resampler_cls",
    "project_cls",
    "resampler_text",
    "project_text",
    "personalization_kv",
    "gate",
]
"""Fig. 3's parts: the learnable queries, Resampler_L of queries, Resampler_C of [CLS], Resampler_T of text (Eqs. 2 and
3), the projections of DINO's patches, of [CLS] and of text into them, both branches' keys and values at every site, and
the gate's constants, where they are learned."""
PARTS: tuple[str, ...] = get_args(Part)
BRANCHES = {
    "preservation": ("queries", "resampler_queries", "resampler_cls", "project_retrieval", "preservation_kv"),
    "personalization": ("resampler_text", "project_text", "personalization_kv"),
}
"""The parts of either branch; `project_cls` serves both."""


def part_of(name: str) -> str:
    """The part that a weight of `FlexIPAdapter` belongs to, by the weight's name."""
    for branch in ("preservation", "personalization"):
        if f".{branch}." in name:
            return f"{branch}_kv"
    return name.split(".")[0]


def is_trained(name: str, parts: Collection[str]) -> bool:
    """Whether a stage that trains these parts, or all where it names none, trains a weight."""
    return not parts or part_of(name) in parts
