"""Who writes the captions: a vision-language model through transformers, or another tool's file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from ...common.errors import FlexIPError
from ...common.texts import decode_text, encoding_of, not_unicode

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..format import Frame

DETAILED = (
    "Describe this picture for a picture generator in two to four sentences, at most 80 words. Begin with the main "
    "subject: what kind of thing it is, how it looks (its colors, patterns, materials, clothes and other marks), what "
    "it is doing, where it is, what is around it, the light, and from where it is seen. Say only what is seen here. "
    'Do not begin with "The image".'
)
SCENE = (
    "Describe this picture for a picture generator in one or two short sentences, at most 40 words. Begin with the "
    "main subject: say what kind of thing it is, what it is doing, where it is and from where it is seen. Do not "
    'describe its colors, patterns, materials, clothes or other fine looks. Do not begin with "The image".'
)


class Form(NamedTuple):
    """What captions are like.

    Attributes:
        prompt: what a model that takes questions is asked.
        tokens: CLIP's, at most, without start and end.
    """

    prompt: str
    tokens: int


FORMS = {"detailed": Form(DETAILED, 140), "scene": Form(SCENE, 59)}
"""`detailed` is after the paper: "high-quality, distinct captions for each frame", for "detailed editing instructions"
(§4.1). It does not print its prompt; ours asks for looks, action and scene, in two of the pieces of 75 tokens that long
prompts are read in (less ten, since models count in tokens of their own). `scene` leaves fine looks out, which are then
the reference's alone to carry (our choice; a prompt that names them, as people write, was never trained), in one piece.
"""
PIXELS = 448 * 448
"""Larger pictures are made this small for the captioner: 256 of Qwen2-VL's tokens, at any proportions (our choice)."""


@dataclass(frozen=True)
class CaptionerChoice:
    """What the command line says of a captioner.

    Attributes:
        name: one of `CAPTIONERS`.
        model: a local folder, or with `download` a name on the Hugging Face hub.
        file: for `file`: JSON lines, or a folder of FRAME_ID.txt.
        device: where the model runs.
        form: one of `FORMS`.
        dtype: what the model computes in; None takes bfloat16 on a GPU and float32 on the CPU.
        download: whether the hub may be asked.
    """

    name: str
    model: str | None = None
    _: KW_ONLY
    file: Path | None = None
    device: str | torch.device = "cpu"
    form: str = "detailed"
    dtype: torch.dtype | None = None
    download: bool = False


class Captioner(Protocol):
    """Captions for a batch of frames.

    Attributes:
        looks: whether it wants the pictures; `pictures` is empty otherwise.
    """

    looks: bool

    def __call__(self, frames: Sequence[Frame], pictures: Sequence[Image]) -> list[str | None]:
        """One text per frame, RGB pictures in the same order; None where it has nothing to say."""


class ChatCaptioner:
    """A model that answers about a picture: Qwen2-VL, or any other with a chat template in transformers.

    Batched with padding on the left, greedy, so a picture gives the same caption each time.
    """

    looks = True

    def __init__(self, choice: CaptionerChoice, model_class: str) -> None:
        self.form = FORMS[choice.form]
        self.model, self.processor = _load(choice, model_class)
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.form.prompt}]}]
        try:
            self.question = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except (ValueError, AttributeError, ImportError) as error:
            raise FlexIPError(
                f"{choice.model} has no chat template ({error}); get the Instruct form of the model, or "
                "use --captioner blip"
            ) from error

    def __call__(self, frames: Sequence[Frame], pictures: Sequence[Image]) -> list[str | None]:
        inputs = self.processor(
            text=[self.question] * len(pictures),
            images=[capped(p) for p in pictures],
            padding=True,
            return_tensors="pt",
        )
        answers = _generate(self.model, inputs, self.form.tokens)[:, inputs["input_ids"].shape[1] :]
        return list(self.processor.batch_decode(answers, skip_special_tokens=True))


class PlainCaptioner:
    """A model that captions a picture without being asked: BLIP and its like in transformers; greedy."""

    looks = True

    def __init__(self, choice: CaptionerChoice) -> None:
        self.tokens = FORMS[choice.form].tokens
        self.model, self.processor = _load(choice, "AutoModelForImageTextToText")

    def __call__(self, frames: Sequence[Frame], pictures: Sequence[Image]) -> list[str | None]:
        inputs = self.processor(images=[capped(p) for p in pictures], return_tensors="pt")
        return list(self.processor.batch_decode(_generate(self.model, inputs, self.tokens), skip_special_tokens=True))


class FileCaptioner:
    """Captions that another tool made, such as a bulk engine that read the tar shards: by frame id.

    A file holds one JSON object per line with `frame_id` (or WebDataset's `__key__`) and `caption` (or `text`); a
    folder holds FRAME_ID.txt.
    """

    looks = False

    def __init__(self, choice: CaptionerChoice) -> None:
        if choice.file is None:
            raise FlexIPError("--captioner file needs --captions FILE: JSON lines, or a folder of FRAME_ID.txt")
        self.captions = read_captions(choice.file)

    def __call__(self, frames: Sequence[Frame], pictures: Sequence[Image]) -> list[str | None]:
        return [self.captions.get(frame.frame_id) for frame in frames]


CAPTIONERS: dict[str, Callable[[CaptionerChoice], Captioner]] = {
    "qwen2-vl": lambda choice: ChatCaptioner(choice, "Qwen2VLForConditionalGeneration"),
    "chat": lambda choice: ChatCaptioner(choice, "AutoModelForImageTextToText"),
    "blip": PlainCaptioner,
    "file": FileCaptioner,
}
"""By the name that `--captioner` takes."""


def read_captions(path: Path) -> dict[str, str]:
    """Captions by frame id from JSON lines or a folder of FRAME_ID.txt.

    Raises:
        FlexIPError: no such place, a line that is not such an object (it is named), or nothing in it.
    """
    if path.is_dir():
        try:
            found = {file.stem: decode_text(file.read_bytes(), str(file)) for file in sorted(path.glob("*.txt"))}
        except (OSError, ValueError) as error:
            raise FlexIPError(f"--captions: {error}") from error
    else:
        found = {}
        try:
            with path.open("rb") as file:
                encoding = encoding_of(file.read(4))
            with path.open(encoding=encoding) as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        name, text = _entry(path, number, line)
                        found[name] = text
        except UnicodeDecodeError as error:
            raise FlexIPError(f"--captions: {not_unicode(path, error)}") from error
        except OSError as error:
            raise FlexIPError(f"{path} cannot be read ({error}); expected JSON lines or a folder of .txt") from error
    if not found:
        raise FlexIPError(f"{path} holds no captions; expected JSON lines or FRAME_ID.txt files")
    return found


def capped(picture: Image) -> Image:
    """The picture with at most `PIXELS` pixels, its proportions kept."""
    scale = (PIXELS / (picture.width * picture.height)) ** 0.5
    if scale >= 1:
        return picture
    return picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))


def _entry(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
        name, text = entry.get("frame_id", entry.get("__key__")), entry.get("caption", entry.get("text"))
    except (ValueError, AttributeError):
        name = text = None
    if not isinstance(name, str) or not isinstance(text, str):
        raise FlexIPError(
            f'{path}, line {number}: expected an object with "frame_id" and "caption", got {line.strip()[:80]!r}'
        )
    return name, text


def _load(choice: CaptionerChoice, model_class: str) -> tuple[Any, Any]:
    """A model and its processor from local files, never from pickles, never with code of the model's own."""
    import transformers

    if choice.model is None:
        raise FlexIPError(f"--captioner {choice.name} needs --model FOLDER, such as a local Qwen2-VL-7B-Instruct")
    if not choice.download and not Path(choice.model).is_dir():
        raise FlexIPError(
            f"there is no folder {choice.model}; give the model's local folder, or add --download to "
            "fetch it from the Hugging Face hub by its name"
        )
    dtype = choice.dtype or (torch.bfloat16 if torch.device(choice.device).type == "cuda" else torch.float32)
    local = {"local_files_only": not choice.download, "trust_remote_code": False}
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    weights = {"use_safetensors": True, "dtype" if version >= (4, 56) else "torch_dtype": dtype}
    try:
        processor = transformers.AutoProcessor.from_pretrained(choice.model, **local)
        model = getattr(transformers, model_class).from_pretrained(choice.model, **weights, **local)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise FlexIPError(
            f"{choice.model} cannot be loaded as --captioner {choice.name} ({' '.join(str(error).split())[:300]})"
        ) from error
    if choice.name == "qwen2-vl" and model.config.model_type != "qwen2_vl":
        raise FlexIPError(f"{choice.model} is a {model.config.model_type}, not a Qwen2-VL; use --captioner chat")
    # Leftovers of sampling in a model's own settings, which greedy search would warn of.
    for name in ("temperature", "top_p", "top_k"):
        setattr(model.generation_config, name, None)
    return model.to(choice.device).eval().requires_grad_(False), processor


@torch.no_grad()
def _generate(model: Any, inputs: Any, tokens: int) -> Any:
    moved = {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in inputs.items()
    }
    return model.generate(**moved, max_new_tokens=tokens, do_sample=False, num_beams=1)
