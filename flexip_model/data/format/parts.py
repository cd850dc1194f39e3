"""Rows of complete shards, a file each in `index/NAME.parts/`, and the index that they become."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.errors import FlexIPError
from ...files.safefile import atomic
from .schema import SCHEMA

SHARE_SHARDS = 1_000_000
"""The numbers of shards that each of several processes has for itself."""
DONE = "done.json"
"""In a share's folder of rows: what `ShardWriter.finish_share` noted."""


def complete_parts(folder: Path) -> list[Path]:
    """The rows of complete shards, a file each, in order."""
    done: list[Path] = []
    while (part := folder / f"{len(done):06}.parquet").exists():
        done.append(part)
    return done


def read_done(path: Path) -> dict[str, Any]:
    """What `ShardWriter.finish_share` noted.

    Raises:
        FlexIPError: the file is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no table")
    except (OSError, ValueError) as error:
        raise FlexIPError(
            f"{path} cannot be read ({error}); bring it again, or delete {path.parent} and pack that share anew"
        ) from error
    return found


def write_index(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    """Write an index file from rows, atomically and in little memory."""
    with atomic(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
