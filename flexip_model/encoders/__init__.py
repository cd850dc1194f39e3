"""The frozen encoders: OpenCLIP ViT-H/14 for [CLS], DINOv2-L/14 for patches; from local files, told by their keys."""

from .clip import ClipEncoder, load_clip
from .dino import DinoEncoder, load_dino
from .likeness import clip_vectors, cosines, dino_vectors, text_vectors, unit
from .pair import Encoders, Views, check_encoders, other_weights
from .text import TextEncoder, load_text

__all__ = [
    "ClipEncoder",
    "DinoEncoder",
    "Encoders",
    "TextEncoder",
    "Views",
    "check_encoders",
    "clip_vectors",
    "cosines",
    "dino_vectors",
    "load_clip",
    "load_dino",
    "load_text",
    "other_weights",
    "text_vectors",
    "unit",
]
