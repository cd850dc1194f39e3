"""The demo model's tokenizer: CLIP's byte-level BPE, learned from the prompts' own words.

The files are CLIP's (`vocab.json`, `merges.txt`), so transformers' `CLIPTokenizer` reads them, and any text
can be written with the 256 bytes that the vocabulary begins with.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from .backgrounds import COLORS, SCENES
from .compose import RECOLORED, STYLE_WORDS
from .store import Store
from .vocabulary import WORDS

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
_WORD_END = "</w>"


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte, in the order of CLIP's vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def corpus(store: Store) -> Counter[str]:
    """Words of the prompts and how often each is counted: names once, words of style and place 20 times."""
    words: Counter[str] = Counter()
    for name in sorted({*WORDS, *(subject.name for subject in store.subjects)}):
        words.update(name.replace("’", "").replace("-", " ").split())
    fixed = [
        *COLORS,
        *RECOLORED,
        *(w for group in STYLE_WORDS.values() for w in group),
        *(w for _, group in SCENES.values() for w in group),
        "a an of on in the with and background plain gradient from to front wall picture photo",
    ]
    for phrase in fixed:
        for word in phrase.replace("-", " ").split():
            words[word] += 20
    return words


def learn_merges(words: Counter[str], limit: int) -> list[tuple[str, str]]:
    """Byte-pair merges as the library `tokenizers` learns them, the most frequent pair first, at most `limit`.

    Only ASCII letters are merged; other characters stay bytes.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    known = {word: count for word, count in sorted(words.items()) if word.isascii() and word.isalpha()}
    letters = sorted({letter for word in known for letter in word})
    ends = sorted({word[-1] + _WORD_END for word in known})
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + len(ends) + limit,
        min_frequency=1,
        special_tokens=ends,  # otherwise numbered in an order that differs from run to run, which decides ties
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    tokenizer.train_from_iterator((word for word, count in known.items() for _ in range(count)), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(first, second) for first, second in merges][:limit]


def write_tokenizer(store: Store, folder: Path, limit: int = 1400) -> None:
    """Learn the merges from a store's names (training part) and write CLIP's tokenizer files into `folder`."""
    letters = _byte_letters()
    merges = learn_merges(corpus(store), limit)
    tokens = [*letters, *(c + _WORD_END for c in letters), *("".join(m) for m in merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({k: v for k, v in config.items() if k.endswith("_token")}, indent=1) + "\n", encoding="utf-8"
    )


class Words:
    """Prompts to token ids."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPTokenizer

        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    def __call__(self, prompts: list[str]):
        """(n, 77) int64 ids: start, words, end, padded with end; longer prompts are cut."""
        return self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).input_ids
