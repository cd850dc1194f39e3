"""The data format, version 1: what other parts of the pack import; `docs/data.md` has it in words with an example.

A data folder holds:
    flexip-data.json               {"format": "flexip-data", "version": 1, "datasets": {NAME: {"license", "note"}}}
    index/NAME.parquet             one row per group, columns as `SCHEMA`
    index/NAME.arrow               the same rows for memory mapping; derived, made anew when it is missing or old
    shards/NAME-000000.tar         sample key = frame_id, members FRAME_ID.jpg or .png and FRAME_ID.mask.png
    caches/KEY/…                   what `data cache` makes

The frames of a group are its subject's pictures. Columns that the paper's recipe needs: kind (α or 1 − β, section
3.3), quality (the last 40,000 steps train on "high" alone, section 4.1).
"""

from __future__ import annotations

from .dataset import Dataset, index_names, rebuild
from .schema import (
    KINDS,
    QUALITIES,
    SCHEMA,
    SPLITS,
    VERSION,
    Frame,
    Group,
    NewFrame,
    NewGroup,
    atomic,
    check_name,
    read_folder_file,
    shard_path,
    write_folder_file,
)
from .shards import MAX_BYTES, ShardWriter, write_index

__all__ = [
    "KINDS",
    "MAX_BYTES",
    "QUALITIES",
    "SCHEMA",
    "SPLITS",
    "VERSION",
    "Dataset",
    "Frame",
    "Group",
    "NewFrame",
    "NewGroup",
    "ShardWriter",
    "atomic",
    "check_name",
    "index_names",
    "read_folder_file",
    "rebuild",
    "shard_path",
    "write_folder_file",
    "write_index",
]
