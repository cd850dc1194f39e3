"""Prompts of any length, as ComfyUI reads them: pieces of 75 tokens, each with a start and an end of its own.

Letters: k pieces of 77 tokens, B prompts, W the text encoder's width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..method.adapters import FlexIPAdapter
from ..method.sd15 import TEXT_LENGTH

PIECE = TEXT_LENGTH - 2


def prompt_ids(tokenizer: Any, text: str, most: int) -> Tensor:
    """A prompt's tokens, (77·k,) int64; an empty one has one piece.

    Args:
        tokenizer: transformers' CLIP tokenizer.
        most: pieces; what is beyond them is cut.
    """
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids[: most * PIECE]
    found: list[int] = []
    for start in range(0, max(len(ids), 1), PIECE):
        piece = [tokenizer.bos_token_id, *ids[start : start + PIECE], tokenizer.eos_token_id]
        found += piece + [tokenizer.pad_token_id] * (TEXT_LENGTH - len(piece))
    return torch.tensor(found, dtype=torch.int64)


def common_length(pieces: Sequence[int]) -> int:
    """How many pieces prompts of these lengths are repeated to, so that they fit into one batch.

    Repeating changes nothing for attention: a softmax over keys that are all there as often gives the same mean.
    """
    return math.lcm(*pieces)


def personalization(adapter: FlexIPAdapter, text: Tensor, cls: Tensor, pieces: Sequence[int]) -> Tensor:
    """S of a batch of prompts that were repeated to one length, (B, 77·k, token_width).

    Each is made from the prompt as it is and then repeated, as the nodes do: Resampler_T mixes text with the [CLS], so
    repeated text would give other tokens (§3.3, Eq. 3).

    Args:
        text: (B, 77·k, W).
        cls: (B, clip_width).
        pieces: of each prompt before it was repeated, B numbers that divide k.
    """
    whole = text.shape[1] // TEXT_LENGTH
    if all(count == whole for count in pieces):
        return adapter.personalization(text, cls)
    rows = [
        adapter.personalization(text[i : i + 1, : count * TEXT_LENGTH], cls[i : i + 1]).repeat(1, whole // count, 1)
        for i, count in enumerate(pieces)
    ]
    return torch.cat(rows)
