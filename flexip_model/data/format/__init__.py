"""The data format, version 1: what other parts of the pack import; `docs/data.md` has it in words with an example.

A data folder holds:
    flexip-data.json               {"format": "flexip-data", "version": 1, "datasets": {NAME: {"license", "note"}}}
    index/NAME.parquet             one row per group, columns as `SCHEMA`
    index/NAME.arrow               the same rows for memory mapping; derived, made anew when it is missing or old
    shards/NAME-000000.tar         sample key = frame_id, members FRAME_ID.jpg or .png and FRAME_ID.mask.png
    caches/KEY/…                   what `data cache` makes

The frames of a group are its subject's pictures. Two columns serve the paper's recipe: `kind` decides between α and
1 − β (Eq. 5), and the last 40,000 steps train on the `quality` "high" alone (App. B.1 says
"higher-quality images"; that these are Table 3's "High" is our reading).
"""

from __future__ import annotations

from .dataset import Dataset
from .schema import SCHEMA, Frame, Group, NewFrame, NewGroup, shard_path
from .shards import ShardWriter

__all__ = ["SCHEMA", "Dataset", "Frame", "Group", "NewFrame", "NewGroup", "ShardWriter", "shard_path"]
