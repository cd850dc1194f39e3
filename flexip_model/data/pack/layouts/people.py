"""Faces by identity (CelebA, MeGlass) and garments with who wears them (VITON-HD, DressCode)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ....common.errors import FlexIPError
from ..pixels import RawFrame, Ref
from .base import Choice, Item, Layout, RawGroup, evenly, folders, mask_of, names, read_table, walk

ALIGNED = ("img_align_celeba", "img_align_celeba_png")
"""CelebA's faces cut to 178 × 218 px. Table 3's "High" is a resolution, which only the pictures as found (img_celeba)
have; so they come first, and groups of these are "base" (our choice)."""
UPPER_LABELS = (5, 6, 7)
"""Upper clothes, dress and coat of the 20 labels of `image-parse-v3`."""
DRESSCODE_LABELS = {"upper_body": (4,), "lower_body": (5, 6), "dresses": (7,)}
"""Upper clothes; skirt and trousers; dress, of DressCode's 18 labels."""


def _find(source: Path, name: str, layout: str) -> Path:
    for folder in walk(source):
        if (folder / name).exists():
            return folder / name
    raise FlexIPError(f"there is no {name} under {source}, which {layout} has")


def _celeba_items(source: Path) -> Iterator[Item]:
    identities: dict[int, list[str]] = {}
    table = _find(source, "identity_CelebA.txt", "CelebA")
    for line in read_table(table):
        parts = line.split()
        if len(parts) != 2 or not parts[1].isdigit() or "/" in parts[0] or "\\" in parts[0]:
            raise FlexIPError(f'{table}: expected lines such as "000001.jpg 2880", got {line[:80]!r}')
        identities.setdefault(int(parts[1]), []).append(parts[0])
    folder = next(
        (found for name in ("img_celeba", *ALIGNED) for found in walk(source) if found.name == name and names(found)),
        None,
    )
    if folder is None:
        raise FlexIPError(f"there is no folder img_align_celeba or img_celeba with pictures under {source}")
    there = {Path(name).stem: name for name in names(folder)}
    for identity in sorted(identities):
        found = [there[stem] for name in sorted(identities[identity]) if (stem := Path(name).stem) in there]
        if len(found) > 1:
            quality = "base" if folder.name in ALIGNED else ""
            yield Item(f"{identity:05}", f"celeba/{identity}", {"folder": folder, "names": found}, quality)


def _load_faces(item: Item, choice: Choice) -> list[RawGroup]:
    chosen = evenly(item.data["names"], choice.views)
    return [RawGroup(tuple(RawFrame(Ref(item.data["folder"] / name)) for name in chosen))]


def _meglass_items(source: Path) -> Iterator[Item]:
    for folder in walk(source):
        people: dict[str, list[str]] = {}
        for name in names(folder):
            if name.count("@") >= 2:
                people.setdefault("@".join(name.split("@")[:2]), []).append(name)
        for identity, found in sorted(people.items()):
            if len(found) > 1:
                yield Item(identity, f"megaface/{identity}", {"folder": folder, "names": found})


def _viton_items(source: Path) -> Iterator[Item]:
    root = source / "train" if (source / "train").is_dir() else source
    for part in ("image", "cloth"):
        if not (root / part).is_dir():
            raise FlexIPError(f"there is no {root / part}, which VITON-HD's training part has")
    cloth = set(names(root / "cloth"))
    for name in names(root / "image"):
        if name in cloth:
            yield Item(Path(name).stem, f"viton-hd/{Path(name).stem}", {"root": root, "name": name})


def _load_viton(item: Item, choice: Choice) -> list[RawGroup]:
    root, name = item.data["root"], item.data["name"]
    worn = labels(_first(root, ("image-parse-v3", "image-parse"), Path(name).with_suffix(".png").name), UPPER_LABELS)
    alone = _first(root, ("cloth-mask",), name, Path(name).with_suffix(".png").name)
    return [_worn(root / "cloth" / name, alone, root / "image" / name, worn)]


def _dresscode_items(source: Path) -> Iterator[Item]:
    for category in folders(source):
        if category.name not in DRESSCODE_LABELS or not (category / "images").is_dir():
            continue
        there = set(names(category / "images"))
        table = category / "train_pairs.txt"
        if table.is_file():
            models = [line.split()[0] for line in read_table(table)]
        else:
            tests = {line.split()[0] for path in category.glob("test_pairs*.txt") for line in read_table(path)}
            models = sorted(name for name in there if name.endswith("_0.jpg") and name not in tests)
        for model in models:
            number = model.removesuffix("_0.jpg")
            if {model, f"{number}_1.jpg"} <= there:
                key = f"{category.name}/{number}"
                yield Item(key, f"dresscode/{number}", {"category": category, "number": number})


def _load_dresscode(item: Item, choice: Choice) -> list[RawGroup]:
    category, number = item.data["category"], item.data["number"]
    worn = labels(_first(category, ("label_maps",), f"{number}_4.png"), DRESSCODE_LABELS[category.name])
    alone = _first(category, ("cloth_mask", "masks"), f"{number}_1.png")
    return [_worn(category / "images" / f"{number}_1.jpg", alone, category / "images" / f"{number}_0.jpg", worn)]


def _worn(garment: Path, garment_mask: Path | None, person: Path, person_mask: Image.Image | None) -> RawGroup:
    return RawGroup(
        (
            RawFrame(Ref(garment), Ref(garment_mask) if garment_mask else None, role="reference"),
            RawFrame(Ref(person), person_mask, role="target"),
        )
    )


def _first(root: Path, parts: tuple[str, ...], *choices: str) -> Path | None:
    return next((path for part in parts for name in choices if (path := root / part / name).is_file()), None)


def labels(path: Path | None, wanted: tuple[int, ...]) -> Image.Image | None:
    """The mask of some labels of a label map; None when there is no map, it is colored, or none of them is in it.

    Raises:
        OSError, ValueError: the file is damaged.
    """
    if path is None:
        return None
    picture = Image.open(io.BytesIO(path.read_bytes()))
    if picture.mode not in ("P", "L"):
        return None
    found = np.isin(np.asarray(picture), wanted)
    return mask_of(found) if found.any() else None


LAYOUTS = (
    Layout(
        name="celeba",
        kind="multiview",
        quality="high",
        license="CelebA agreement (non-commercial research only)",
        expects="img_celeba (or img_align_celeba) with NNNNNN.jpg, and identity_CelebA.txt; a group is a person",
        items=_celeba_items,
        load=_load_faces,
    ),
    Layout(
        name="meglass",
        kind="multiview",
        quality="base",
        license="MeGlass, from MegaFace (non-commercial research only)",
        expects="MeGlass_120x120 with files such as 10032527@N08_identity_4@2897031059_1.jpg; a group is a person",
        items=_meglass_items,
        load=_load_faces,
    ),
    Layout(
        name="viton-hd",
        kind="pair",
        quality="high",
        license="CC BY-NC 4.0 (VITON-HD)",
        expects=(
            "train/image, train/cloth, and, for masks, train/cloth-mask and train/image-parse-v3; the test part "
            "is not read"
        ),
        items=_viton_items,
        load=_load_viton,
    ),
    Layout(
        name="dresscode",
        kind="pair",
        quality="base",
        license="Dress Code terms of use (form; non-commercial)",
        expects=(
            "upper_body, lower_body and dresses, each with images/N_0.jpg and N_1.jpg, label_maps/N_4.png and "
            "train_pairs.txt"
        ),
        items=_dresscode_items,
        load=_load_dresscode,
    ),
)
