"""The frozen encoders: OpenCLIP ViT-H/14 for [CLS], DINOv2-L/14 for patches; from local files, told by their keys."""

from .clip import ClipEncoder, load_clip
from .dino import DinoEncoder, load_dino
from .pair import Encoders, Views, check_encoders, other_weights

__all__ = [
    "ClipEncoder",
    "DinoEncoder",
    "Encoders",
    "Views",
    "check_encoders",
    "load_clip",
    "load_dino",
    "other_weights",
]
