"""What a caption may look like: one line of no more than some of CLIP's tokens, ending where a sentence does."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any


def tidy(text: str) -> str:
    """One line without quotes around it, doubled spaces or control characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(text) > 1 and text[0] in "\"'“‘" and text[-1] in "\"'”’":
        text = text[1:-1].strip()
    return text


def shorten(text: str, limit: int) -> str:
    """The text as far as whole sentences fit; else whole clauses, else whole words.

    Args:
        text: tidied.
        limit: tokens of CLIP's text encoder, without its start and end.
    """
    if count(text) <= limit:
        return text
    for pattern in (r"(?<=[.!?。！？])\s+", r"(?<=[,;:])\s+", r"\s+"):
        ends = [match.start() for match in re.finditer(pattern, text)]
        fitting = [end for end in ends if count(text[:end]) <= limit]
        if fitting:
            return text[: fitting[-1]].rstrip(" ,;:")
    return _letters(text, limit)


def count(text: str) -> int:
    """Tokens of CLIP's text encoder, without start and end."""
    return len(_tokenizer().encode(text))


def _letters(text: str, limit: int) -> str:
    """A text without spaces, by letters."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= limit else (low, middle - 1)
    return text[:low]


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
