"""The layouts that `data pack` knows: a user's own folders, and the data sets of the paper's Table 3."""

from __future__ import annotations

from ....common.errors import FlexIPError
from . import clips, folders, orbits, people, segments
from .base import Choice, Item, Layout, RawGroup

LAYOUTS = {layout.name: layout for module in (folders, segments, orbits, people, clips) for layout in module.LAYOUTS}
WITHOUT = {
    "pexels": "Pexels has no canonical release that the paper's 181,038 videos could be taken from; collect videos "
    "under its license yourself and pack them with the layout `videos` and `--quality high`, which it has in Table 3",
    "panohead": "PanoHead is a generator and not a data set; render views of 5,000 seeds with it yourself, one folder "
    "for each seed, and pack them with the layout `views`",
}


def find_layout(name: str) -> Layout:
    """The layout of this name.

    Raises:
        FlexIPError: there is none; for Pexels and PanoHead it says why.
    """
    key = name.lower()
    if key in WITHOUT:
        raise FlexIPError(WITHOUT[key])
    if key not in LAYOUTS:
        raise FlexIPError(f"there is no layout {name!r}; choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[key]


__all__ = ["LAYOUTS", "WITHOUT", "Choice", "Item", "Layout", "RawGroup", "find_layout"]
