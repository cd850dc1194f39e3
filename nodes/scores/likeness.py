"""CLIP-I, DINO-I and CLIP-T of pictures, by the encoders that are loaded.

These encoders are no independent judges: a FlexIP adapter was trained with them. What lacks its input has a sentence in
place of a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...flexip_model.common.errors import FlexIPError
from ...flexip_model.encoders import clip_vectors, cosines, dino_vectors, text_vectors
from ...flexip_model.images.preprocess import prepare
from ..wires import LoadedEncoders

CLIP_I, DINO_I, CLIP_T = "CLIP-I", "DINO-I", "CLIP-T"
SCORES = (CLIP_I, DINO_I, CLIP_T)
NO_JUDGES = "These encoders are no independent judges: a FlexIP adapter was trained with them."
NO_REFERENCE = "no reference is connected"
WHOLE_CLIP = (
    "choose in Load FlexIP Encoders a file that holds the whole CLIP, such as model.safetensors of "
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
)


class Likeness:
    """Scores pictures against one reference and one prompt, which are looked at once.

    Attributes:
        lacking: score to what it lacks, as a sentence without its end; what is not in it can be computed.
    """

    def __init__(self, encoders: LoadedEncoders, reference: Tensor | None, prompt: str) -> None:
        """
        Args:
            reference: (R, H, W, C) in [0, 1]: one picture of the subject or several; or None.
            prompt: empty for none.
        """
        self._encoders, self._reference, self._prompt = encoders, reference, prompt.strip()
        self._wanted: dict[str, Tensor] = {}
        found = {CLIP_I: self._lacks_reference(), DINO_I: self._lacks_dino(), CLIP_T: self._lacks_text()}
        self.lacking = {name: sentence for name, sentence in found.items() if sentence}

    def __call__(
        self, images: Tensor, names: Sequence[str] = SCORES, told: Callable[[int], Any] = lambda _: None
    ) -> dict[str, list[float]]:
        """Each of these scores that can be computed, −1 to 1, one number per picture.

        Of a picture the square in its middle is seen, background included, as the adapter sees a reference. Against
        several references a score is the mean over them (DreamBooth, arXiv 2208.12242).

        Args:
            images: (N, H, W, C) in [0, 1].
            told: called with 1 after each picture.

        Raises:
            FlexIPError: what `preprocess.prepare` raises.
        """
        names = [name for name in SCORES if name in names and name not in self.lacking]
        wanted = {name: self._of_wanted(name) for name in names}
        found: dict[str, list[float]] = {name: [] for name in names}
        for image in images:
            seen = {family: self._look(family, image[None]) for family in {_FAMILY[name] for name in names}}
            for name, others in wanted.items():
                found[name].append(float(cosines(seen[_FAMILY[name]], others).mean()))
            told(1)
        return found

    def _of_wanted(self, name: str) -> Tensor:
        """The vectors of what pictures are compared with, (R, C) or (1, C)."""
        if name not in self._wanted:
            if name == CLIP_T:
                tower, patcher = self._tower()
                comfy.model_management.load_models_gpu([patcher], force_full_load=True)
                self._wanted[name] = text_vectors(tower, [self._prompt])
            elif self._reference is not None:
                self._wanted[name] = torch.cat([self._look(_FAMILY[name], one[None]) for one in self._reference])
        return self._wanted[name]

    def _look(self, family: str, image: Tensor) -> Tensor:
        """One picture (1, H, W, C) as its vector (1, C)."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._encoders.load()
        both = self._encoders.encoders
        if family == "clip":
            return clip_vectors(both.clip, prepare(image, both.clip.image_size).pixels)
        dino = both.need_dino()
        return dino_vectors(dino, prepare(image, dino.image_size).pixels)

    def _tower(self) -> Any:
        return self._encoders.text

    def _lacks_reference(self) -> str:
        return NO_REFERENCE if self._reference is None else ""

    def _lacks_dino(self) -> str:
        if self._encoders.encoders.dino is None:
            return "no DINO encoder is loaded; choose one in Load FlexIP Encoders"
        return self._lacks_reference()

    def _lacks_text(self) -> str:
        if not self._prompt:
            return "no prompt is given"
        clip = self._encoders.encoders.clip
        try:
            found = self._tower()
        except FlexIPError as error:
            return str(error)
        if found is None:
            return f"the file of {clip.name} holds no text tower; {WHOLE_CLIP}"
        if found[0].width != clip.width:
            return f"the towers of {clip.name} are {clip.width} and {found[0].width} wide; {WHOLE_CLIP}"
        return ""


_FAMILY = {CLIP_I: "clip", DINO_I: "dino", CLIP_T: "clip"}


def write_labels(scores: dict[str, list[float]], count: int) -> list[str]:
    """A label for each of `count` pictures, a line per score; empty ones where there are no scores."""
    return ["\n".join(f"{name} {values[number]:.3f}" for name, values in scores.items()) for number in range(count)]


def write_table(scores: dict[str, list[float]], lacking: dict[str, str], count: int) -> str:
    """The scores as plain text: a line per picture, their mean, and why a column is empty."""
    lines = ["picture " + " ".join(f"{name:>8}" for name in SCORES)]
    for number in range(count):
        cells = (f"{scores[name][number]:8.4f}" if name in scores else " " * 8 for name in SCORES)
        lines.append(f"{number + 1:<7} {' '.join(cells)}".rstrip())
    if count > 1:
        cells = (f"{sum(scores[name]) / count:8.4f}" if name in scores else " " * 8 for name in SCORES)
        lines.append(f"mean    {' '.join(cells)}".rstrip())
    lines += [f"{name} is empty: {sentence}." for name, sentence in lacking.items()]
    return "\n".join([*lines, NO_JUDGES])
