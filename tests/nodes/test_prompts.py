"""Captions are read in training as ComfyUI reads prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flexip_model.hosts.prompts import prompt_ids


@pytest.mark.parametrize("words", [0, 1, 7, 74, 75, 76, 150, 151, 224])
def test_long_captions_have_the_tokens_of_a_prompt_in_comfyui(comfy, words: int) -> None:
    from comfy import sd1_clip
    from transformers import CLIPTokenizer

    folder = Path(sd1_clip.__file__).parent / "sd1_tokenizer"
    text = " ".join((["dog", "red", "extraordinarily", "beach", "7", "coat,"] * 40)[:words])
    wanted = sd1_clip.SDTokenizer().tokenize_with_weights(text)
    found = prompt_ids(CLIPTokenizer.from_pretrained(folder), text, 9)
    assert torch.equal(found, torch.tensor([token for piece in wanted for token, *_ in piece]))
