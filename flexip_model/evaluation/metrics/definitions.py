"""One table of what is measured, and one of the weights that this takes.

The paper names its metrics and no model sizes, so which CLIP and which DINO are meant is our choice: those that
DreamBooth and DreamBench++ report.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """Weights that metrics read.

    Attributes:
        title: the published model that is meant.
        files: what its folder must hold, or what the file is.
        source: where it can be had; no package registry has it.
    """

    title: str
    files: str
    source: str


ROLES = {
    "clip": Role(
        "CLIP ViT-B/32 of OpenAI",
        "config.json, model.safetensors, preprocessor_config.json and the tokenizer's files",
        "huggingface.co/openai/clip-vit-base-patch32",
    ),
    "dino": Role(
        "DINO ViT-S/16",
        "config.json, model.safetensors, preprocessor_config.json",
        "huggingface.co/facebook/dino-vits16",
    ),
    "detector": Role(
        "Grounding DINO",
        "config.json, model.safetensors, preprocessor_config.json and the tokenizer's files",
        "huggingface.co/IDEA-Research/grounding-dino-base",
    ),
    "sam": Role(
        "SAM ViT-H",
        "config.json, model.safetensors, preprocessor_config.json",
        "huggingface.co/facebook/sam-vit-huge",
    ),
    "clip-rn50": Role(
        "CLIP ResNet-50 of OpenAI, in open_clip's form",
        "open_clip_config.json and open_clip_model.safetensors",
        "huggingface.co/timm/resnet50_clip.openai",
    ),
    "clip-l": Role(
        "CLIP ViT-L/14 of OpenAI",
        "config.json, model.safetensors, preprocessor_config.json",
        "huggingface.co/openai/clip-vit-large-patch14",
    ),
    "aesthetic": Role(
        "LAION's improved aesthetic predictor (sac+logos+ava1-l14-linearMSE)",
        "a .safetensors file with the predictor's layers.N.weight and layers.N.bias (the published .pth is a pickle, "
        "which is never opened here: save its state dict with safetensors first)",
        "github.com/christophschuhmann/improved-aesthetic-predictor",
    ),
    "image-reward": Role(
        "Image Reward v1.0",
        "its weights as .safetensors under their published names (the published ImageReward.pt is a pickle, which is "
        "never opened here: save its state dict with safetensors first) and the tokenizer's files of bert-base-uncased",
        "huggingface.co/zai-org/ImageReward, huggingface.co/google-bert/bert-base-uncased",
    ),
    "judge": Role(
        "Qwen2-VL-7B-Instruct, or another vision-language model with a chat template",
        "config.json, model.safetensors (in parts), preprocessor_config.json and the tokenizer's files",
        "huggingface.co/Qwen/Qwen2-VL-7B-Instruct",
    ),
}
"""By the name that `--weights NAME=FOLDER` and the config take."""


@dataclass(frozen=True)
class Definition:
    """What a metric is.

    Attributes:
        title: as in the paper's tables.
        group: `personalization`, `preservation`, `quality` or `judgment` (Table 2).
        roles: the weights that it reads.
        low, high: what it can be; higher is better for all of them.
        needs_prompt: whether a picture without a prompt has none.
        computed: what is done to the picture and with it.
        source: who defined it.
    """

    title: str
    group: str
    roles: tuple[str, ...]
    low: float
    high: float
    needs_prompt: bool
    computed: str
    source: str


_CLIP = "the folder's own preprocessing (published: shorter side to 224 px, bicubic, center crop)"
_SUBJECT = (
    "subject found by Grounding DINO from its noun (best box, at least 0.3), cut out by SAM, put on white and cropped "
    "to a square around it, in both pictures (the paper: after segmentation; white and crop are our choice); a subject "
    "that is not found in the generated picture counts 0 and is marked"
)
_JUDGE = (
    "a vision-language model's whole number, greedy, for MLM-Filter's criterion, in our own words (its numbers and "
    "those of Table 2 are of other models: compare within one judge alone)"
)
_MLM = "MLM-Filter (arXiv 2403.02677), as Table 2 of the paper; scale 0 to 100"

DEFINITIONS = {
    "clip-t": Definition(
        "CLIP-T",
        "personalization",
        ("clip",),
        -1,
        1,
        True,
        f"cosine of the picture's and the prompt's CLIP embedding; {_CLIP}; the prompt cut at 77 tokens",
        "DreamBooth (arXiv 2208.12242), with the model of DreamBench++ (arXiv 2406.16855)",
    ),
    "image-reward": Definition(
        "Image Reward",
        "personalization",
        ("image-reward",),
        -3,
        3,
        True,
        "the published reward of picture and prompt, standardized as published; shorter side to 224 px, bicubic, "
        "center crop; the prompt cut at 35 tokens; it may pass its scale's ends",
        "ImageReward (arXiv 2304.05977); the caption of the paper's Table 1 names it, the table does not show it",
    ),
    "clip-i": Definition(
        "CLIP-I",
        "preservation",
        ("clip",),
        -1,
        1,
        False,
        f"cosine of the CLIP embeddings of picture and reference, whole; {_CLIP}",
        "DreamBooth (arXiv 2208.12242)",
    ),
    "clip-i-subject": Definition(
        "CLIP-I (subject)",
        "preservation",
        ("clip", "detector", "sam"),
        -1,
        1,
        False,
        f"as CLIP-I, of the subjects alone: {_SUBJECT}",
        "the paper, section 4.2; Grounded SAM (arXiv 2401.14159)",
    ),
    "dino-i": Definition(
        "DINO-I",
        "preservation",
        ("dino",),
        -1,
        1,
        False,
        "cosine of the [CLS] of picture and reference, whole; the folder's own preprocessing (published: 224 x 224 px, "
        "bilinear; the original code resizes to 256 and crops 224, which moves the score by about 0.02)",
        "DreamBooth (arXiv 2208.12242)",
    ),
    "dino-i-subject": Definition(
        "DINO-I (subject)",
        "preservation",
        ("dino", "detector", "sam"),
        -1,
        1,
        False,
        f"as DINO-I, of the subjects alone: {_SUBJECT}",
        "the paper, section 4.2; Grounded SAM (arXiv 2401.14159)",
    ),
    "clip-iqa": Definition(
        "CLIP-IQA",
        "quality",
        ("clip-rn50",),
        0,
        1,
        False,
        "softmax over 100 x cosine with 'Good photo.' and 'Bad photo.', position table of the pooling set to 0, the "
        "picture at its own size",
        "CLIP-IQA (arXiv 2207.12396)",
    ),
    "aesthetic": Definition(
        "Aesthetic",
        "quality",
        ("clip-l", "aesthetic"),
        1,
        10,
        False,
        f"the predictor on the normalized CLIP ViT-L/14 embedding; {_CLIP}; it may pass its scale's ends",
        "LAION-5B (arXiv 2210.08402), improved aesthetic predictor",
    ),
    "match": Definition("I-T Match", "judgment", ("judge",), 0, 100, True, f"{_JUDGE}: image-text matching", _MLM),
    "detail": Definition("Detail", "judgment", ("judge",), 0, 100, True, f"{_JUDGE}: object detail", _MLM),
    "semantic": Definition("Semantic", "judgment", ("judge",), 0, 100, True, f"{_JUDGE}: semantic understanding", _MLM),
}
"""By the id that `--metrics` takes, in the order of the paper's tables."""
