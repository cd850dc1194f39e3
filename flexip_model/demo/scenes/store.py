"""The subject store: every look of every subject as 144 px RGBA, in one array."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...files.safefile import atomic
from . import sources
from .concepts import ARTISTS, Subject, draw_heldout, heldout_instances, select

SIDE = 144
FRAMES = 4
PIXELS, INDEX = "looks.npy", "looks.json"
"""A store's files."""
STYLES = ("3d", "cartoon", "flat", "line")
"""3d: Fluent's rendered still and animation frames; cartoon: Noto's shaded drawing; flat: Twemoji's and Fluent's
drawings without shades; line: Fluent's one-color high-contrast drawing."""
_DRAWN = (
    ("fluent", "flat", sources.FLAT),
    ("fluent", "line", sources.HIGH_CONTRAST),
    ("noto", "cartoon", sources.NOTO),
    ("twemoji", "flat", sources.TWEMOJI),
)
_HELDOUT_SHARES = {"fluent": 0.15, "noto": 0.04, "twemoji": 0.04}


@dataclass(frozen=True)
class Look:
    """One stored picture: its row, whose it is, in which style, and whether it is an animation frame."""

    row: int
    subject: Subject
    style: str
    frame: bool


class Store:
    """Read access to the stored looks.

    Attributes:
        pixels: uint8, (looks, 144, 144, 4), straight (not premultiplied) alpha.
        looks: one entry per row of `pixels`.
    """

    def __init__(self, pixels: np.ndarray, looks: list[Look]) -> None:
        self.pixels = pixels
        self.looks = looks
        self._by_subject: dict[str, dict[str, list[Look]]] = {}
        for look in looks:
            self._by_subject.setdefault(look.subject.code, {}).setdefault(look.style, []).append(look)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """The store that `build` wrote into `folder`."""
        return cls(np.load(folder / PIXELS, mmap_mode="r"), read_index(folder))

    def split(self, heldout: bool) -> Store:
        """The part that training reads (`heldout=False`) or the part that it never reads."""
        instances = heldout_instances()
        return self.where(lambda x: ((x.subject.artist, x.subject.concept) in instances) == heldout)

    def by(self, artist: str) -> Store:
        """One artist's looks."""
        return self.where(lambda x: x.subject.artist == artist)

    def where(self, wanted: Callable[[Look], bool]) -> Store:
        """The looks that are wanted."""
        return Store(self.pixels, [x for x in self.looks if wanted(x)])

    @property
    def subjects(self) -> list[Subject]:
        """Subjects in the order of their codes."""
        unique = {x.subject.code: x.subject for x in self.looks}
        return [unique[code] for code in sorted(unique)]

    def looks_of(self, code: str, style: str) -> list[Look]:
        """All looks of one subject in one style; the still picture first; empty if it has none."""
        return self._by_subject[code].get(style, [])

    def styles_of(self, code: str) -> list[str]:
        return [s for s in STYLES if s in self._by_subject[code]]

    def picture(self, look: Look) -> Image.Image:
        """The look as an RGBA image, 144 × 144."""
        return Image.fromarray(np.asarray(self.pixels[look.row]), "RGBA")


def _webp_pictures(data: bytes, frames: int) -> list[Image.Image]:
    """The still picture, or `frames` frames spread evenly over an animation, as RGBA at 144 px."""
    with Image.open(io.BytesIO(data)) as image:
        count = getattr(image, "n_frames", 1)
        picked = [0] if count == 1 else [round(i * count / frames) for i in range(frames)]
        pictures = []
        for index in picked:
            image.seek(index)
            pictures.append(image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        return pictures


def svg_picture(body: str, size: int) -> Image.Image:
    """The body of an SVG of size × size as RGBA at 144 px."""
    import resvg_py

    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" width="{SIDE}" height="{SIDE}" '
        f'color="#000">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def build(downloads: Path, folder: Path, animated: bool = True) -> Store:
    """Fetch the packages into `downloads` and write the store into `folder` (about 360 MB, two minutes).

    Without `animated` frames, which evaluation does not need, 23 MB are downloaded in place of 750.
    """
    moving = sources.ANIMATED if animated else ()
    archives = {p: sources.fetch(p, downloads) for p in sources.PACKAGES if p not in sources.ANIMATED or animated}
    subjects = select(sources.read_json(archives[sources.NAMES], "data-by-emoji.json"))
    wanted = {s.code for s in subjects}
    still = sources.read_assets(archives[sources.STATIC], wanted)
    subjects = [s for s in subjects if s.code in still]
    frames_of: dict[str, bytes] = {}
    for package in moving:
        frames_of.update(sources.read_assets(archives[package], wanted))
    drawings = [(artist, style, sources.read_drawings(archives[package])) for artist, style, package in _DRAWN]

    looks: list[Look] = []
    pixels: list[np.ndarray] = []

    def add(subject: Subject, style: str, frame: bool, image: Image.Image) -> None:
        looks.append(Look(len(looks), subject, style, frame))
        pixels.append(np.asarray(image))

    for subject in subjects:
        add(subject, "3d", False, _webp_pictures(still[subject.code], 1)[0])
        if subject.code in frames_of:
            frames = _webp_pictures(frames_of[subject.code], FRAMES)
            for frame in frames if len(frames) > 1 else ():
                add(subject, "3d", True, frame)
        for artist, style, bodies in drawings:
            drawing = bodies.get(subject.code) or bodies.get(subject.code.replace("-fe0f", ""))
            if drawing is not None:
                drawn = subject if artist == subject.artist else subject.by(artist)
                add(drawn, style, False, svg_picture(*drawing))

    write(folder, np.stack(pixels), looks)
    return Store.open(folder)


def write(folder: Path, pixels: np.ndarray, looks: list[Look]) -> None:
    """Write what `Store.open` reads; the index comes last, so that a folder with one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / PIXELS, pixels)
    with atomic(folder / INDEX) as path:
        path.write_text(json.dumps([asdict(look) for look in looks], ensure_ascii=False), encoding="utf-8")


def read_index(folder: Path) -> list[Look]:
    """The looks of a store's folder, without their pixels."""
    return looks_of((folder / INDEX).read_text(encoding="utf-8"))


def looks_of(index: str | bytes) -> list[Look]:
    """The looks of an index in JSON, as `write` writes it."""
    return [Look(e["row"], Subject(**e["subject"]), e["style"], e["frame"]) for e in json.loads(index)]


def write_heldout(store: Store, path: Path) -> None:
    """Draw the held-out instances of a store and write them, per artist, each concept with the names that it covers.

    Fluent's are drawn first; those of the other artists are concepts that Fluent's training part shows, so that of no
    concept every artist is held out.
    """
    taken: set[str] = set()
    listed = {}
    for artist in ARTISTS:
        subjects = store.by(artist).subjects
        salt = "flexip-demo-1" if artist == "fluent" else f"flexip-demo-5:{artist}"
        left = sorted({s.concept for s in subjects} - taken)
        concepts = draw_heldout(left, _HELDOUT_SHARES[artist], salt)
        taken.update(concepts)
        listed[artist] = {c: sorted(s.name for s in subjects if s.concept == c) for c in concepts}
    path.write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
