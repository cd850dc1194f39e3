"""Table 2's three judgments by a local vision-language model, on MLM-Filter's scale of 0 to 100.

The criteria are those of MLM-Filter (arXiv 2403.02677), by which the paper made Table 2 (section 4.3.1); the words are
ours. The paper does not name its model, so Table 2's numbers are not to be met, only methods compared by one judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...common.errors import FlexIPError
from ..loading import describe_processor, folder_hash, load_model, load_part

if TYPE_CHECKING:
    from PIL.Image import Image

CRITERIA = {
    "match": (
        "How well does the text say what the picture mainly shows? Its main objects and features must be right; the "
        "text need not name every detail."
    ),
    "detail": (
        "How well do the objects' details in the picture agree with the text: color, size, position, shape, material "
        "and the like?"
    ),
    "semantic": (
        "How much meaning does the text add that fits the picture and is not plain to see: what kind of person, "
        "animal or thing it is, which place, event or relation, what one must know to say it?"
    ),
}
ASK = (
    "Text: {text}\n\n{criterion} Answer with one whole number from 0 (not at all) to 100 (perfectly), using the whole "
    "scale and not only multiples of 10. Write the number alone."
)
NEW_TOKENS = 8
PIXELS = 512 * 512
"""Larger pictures are made this small (our choice)."""


class Judge:
    """A chat model that looks at pictures; Qwen2-VL, or any other of its class in transformers."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = load_model(AutoModelForImageTextToText, folder, device, dtype)
        self.processor = load_part(AutoProcessor, folder)
        self.name, self.hash = folder.resolve().name, folder_hash(folder)
        self.preparation = f"at most {PIXELS:,} pixels, bicubic; {describe_processor(self.processor.image_processor)}"
        # Leftovers of sampling in a model's own settings, which greedy search would warn of.
        for name in ("temperature", "top_p", "top_k"):
            setattr(self.model.generation_config, name, None)

    @torch.no_grad()
    def answer(self, picture: Image, text: str, criterion: str) -> str:
        """The model's own words; greedy, so the same each time.

        Raises:
            FlexIPError: the model has no chat template.
        """
        question = ASK.format(text=text, criterion=CRITERIA[criterion])
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        try:
            asked = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except (ValueError, AttributeError, ImportError) as error:
            raise FlexIPError(f"{self.name} has no chat template ({error}); get the Instruct form of it") from error
        scale = min(1.0, (PIXELS / (picture.width * picture.height)) ** 0.5)
        seen = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
        inputs = self.processor(text=[asked], images=[seen], return_tensors="pt")
        moved = {
            name: value.to(self.model.device, self.model.dtype)
            if value.is_floating_point()
            else value.to(self.model.device)
            for name, value in inputs.items()
        }
        made = self.model.generate(**moved, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
        words: Sequence[str] = self.processor.batch_decode(
            made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return words[0].strip()


def read_number(answer: str) -> float | None:
    """The first whole number from 0 to 100 that begins an answer, or follows `score` or the like; None without one."""
    found = re.match(r"\D{0,20}?(\d{1,3})(?![\d.]*\d)", answer)
    return float(found[1]) if found and int(found[1]) <= 100 else None
