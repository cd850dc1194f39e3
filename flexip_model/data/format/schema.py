"""The index of a data folder: its columns, the rows as Python objects, and the folder's own file (format version 1)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...common.errors import FlexIPError
from ...files.safefile import atomic

VERSION = 1
FOLDER_FILE = "flexip-data.json"
GROUP_KINDS = ("image", "multiview", "video", "pair")
"""What the frames of a group are; "image" is the paper's invariant data, the others its variant data (Table 3)."""
QUALITIES = ("base", "high")
SPLITS = ("train", "val", "heldout")
ROLES = ("any", "reference", "target")

FRAME = pa.struct(
    [
        ("frame_id", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("mask_offset", pa.int64()),
        ("mask_bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("time", pa.float64()),
        ("role", pa.string()),
        ("box", pa.list_(pa.float32())),
        ("captions", pa.list_(pa.string())),
        ("sharpness", pa.float32()),
        ("hash", pa.string()),
        ("dhash", pa.string()),
        ("caches", pa.list_(pa.string())),
    ]
)
SCHEMA = pa.schema(
    [
        ("group_id", pa.string()),
        ("dataset", pa.string()),
        ("kind", pa.string()),
        ("quality", pa.string()),
        ("license", pa.string()),
        ("split", pa.string()),
        ("frames", pa.list_(FRAME)),
    ]
)


@dataclass(frozen=True)
class Frame:
    """One picture of a group, as the index knows it.

    Attributes:
        frame_id: letters, digits, `_` and `-`; unique in the data folder, and the sample's key in its tar.
        shard: the tar's file name in `shards/`.
        offset, bytes: where the encoded picture lies in the tar, so that one seek reads it.
        mask_offset, mask_bytes: the same for its mask (gray PNG, white is the subject), or None.
        width, height: pixels, as stored.
        time: seconds from the start of the video, or None.
        role: what the frame may be used as: "any", "reference" or "target".
        box: the subject's x0, y0, x1, y1 in pixels (x1, y1 exclusive), or None.
        captions: texts of this frame, any number.
        sharpness: variance of the Laplacian of the 8-bit gray picture, longer side 256 px.
        hash: SHA-256 of the encoded bytes, hexadecimal.
        dhash: 64-bit difference hash, 16 hexadecimal digits; near pictures differ in few bits.
        caches: the keys of the caches that hold this frame.
    """

    frame_id: str
    shard: str
    offset: int
    bytes: int
    mask_offset: int | None
    mask_bytes: int | None
    width: int
    height: int
    time: float | None
    role: str
    box: tuple[float, float, float, float] | None
    captions: tuple[str, ...]
    sharpness: float
    hash: str
    dhash: str
    caches: tuple[str, ...] = ()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Frame:
        values = {name: row[name] for name in FRAME_FIELDS}
        values["box"] = None if row["box"] is None else tuple(row["box"])
        values["captions"], values["caches"] = tuple(row["captions"] or ()), tuple(row["caches"] or ())
        return cls(**values)


FRAME_FIELDS = tuple(entry.name for entry in fields(Frame))


@dataclass(frozen=True)
class Group:
    """One subject: a picture, a video's shot, views of one thing, or a pair (the paper's "instance", Table 3)."""

    group_id: str
    dataset: str
    kind: str
    quality: str
    license: str
    split: str
    frames: tuple[Frame, ...]

    @property
    def variant(self) -> bool:
        """Whether target and reference differ: the gate trains with 1 − β then, else with α (Eq. 5, our reading)."""
        return self.kind != "image"

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Group:
        values = {name: row[name] for name in SCHEMA.names if name != "frames"}
        return cls(**values, frames=tuple(Frame.from_row(frame) for frame in row["frames"]))

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class NewFrame:
    """A frame that is not in a shard yet: encoded bytes and what is known of them.

    Attributes:
        picture: a JPEG or PNG file's bytes, written unchanged.
        mask: a gray PNG of the same size, or None.
        The other attributes are those of `Frame`.
    """

    picture: bytes
    width: int
    height: int
    sharpness: float
    dhash: str
    mask: bytes | None = None
    time: float | None = None
    role: str = "any"
    box: tuple[float, float, float, float] | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class NewGroup:
    """A group that is not in a shard yet; the writer adds the dataset and the license."""

    group_id: str
    kind: str
    frames: tuple[NewFrame, ...]
    split: str = "train"
    _: KW_ONLY
    quality: str = "base"
    license: str = ""


def check_name(name: str) -> str:
    """Return a dataset's name when it can be part of file names.

    Raises:
        FlexIPError: anything but up to 40 letters, digits, `_` and `-`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", name):
        raise FlexIPError(f"{name!r} cannot name a dataset: use up to 40 letters, digits, _ and -")
    return name


def shard_path(folder: Path, shard: str) -> Path:
    """Return a shard's path; the name comes from the index, so it may not lead out of `shards/`.

    Raises:
        FlexIPError: it is not a plain name that ends in `.tar`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*\.tar", shard):
        raise FlexIPError(f"{folder}: the index names a shard {shard!r}, expected a name such as pets-000000.tar")
    return folder / "shards" / shard


def check_schema(path: Path, schema: pa.Schema) -> None:
    """Refuse an index that is not this version's.

    Raises:
        FlexIPError: a column is missing or has another type; it is named.
    """
    for column in SCHEMA:
        place = schema.get_field_index(column.name)
        if place < 0:
            raise FlexIPError(f"{path} lacks the column {column.name!r}; pack the dataset again")
        found = schema.field(place).type
        if not _same(found, column.type):
            raise FlexIPError(f"{path}: column {column.name!r} is {found}, expected {column.type}; pack it again")


def _same(found: pa.DataType, wanted: pa.DataType) -> bool:
    # Parquet may rename the inner field of a list ("element", "item"), which Arrow counts as another type.
    if pa.types.is_list(wanted):
        return pa.types.is_list(found) and _same(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        return (
            pa.types.is_struct(found)
            and {f.name for f in found} == {f.name for f in wanted}
            and all(_same(found.field(f.name).type, f.type) for f in wanted)
        )
    return bool(found == wanted)


def read_folder_file(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The datasets that a data folder declares: name → {"license", "note", …}.

    Raises:
        FlexIPError: no data folder, a damaged file, or another version.
    """
    path = Path(folder) / FOLDER_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlexIPError(
            f"{folder} is no data folder: it has no {FOLDER_FILE}; make one with `python -m flexip_model data pack`"
        ) from None
    except (OSError, ValueError) as error:
        raise FlexIPError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("format") != "flexip-data":
        raise FlexIPError(f'{path} is not the file of a FlexIP data folder: its format is not "flexip-data"')
    if content.get("version") != VERSION:
        raise FlexIPError(
            f"{folder} has data format version {content.get('version')}, this pack reads version "
            f"{VERSION}; update the pack"
        )
    datasets = content.get("datasets")
    if not isinstance(datasets, dict) or not all(isinstance(value, dict) for value in datasets.values()):
        raise FlexIPError(f"{path} has no table of datasets")
    return datasets


def write_folder_file(folder: Path, datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the file that declares the datasets of a folder, atomically; as `read_folder_file` gives them."""
    content = {"format": "flexip-data", "version": VERSION, "datasets": {k: datasets[k] for k in sorted(datasets)}}
    with atomic(folder / FOLDER_FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
