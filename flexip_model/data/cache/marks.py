"""Which caches hold a frame: what the cache files tell, and the column of the index that says so."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..format import Dataset
from ..format.walk import list_shards, rewrite_frames, stamp
from .manifest import cache_file, list_caches

FRAMES_STAMP = "flexip.frames"


def mark_caches(folder: Path) -> dict[str, int]:
    """Write into every index which caches hold each frame, as the files on the disk tell.

    Returns:
        Frames by cache key.

    Raises:
        FlexIPError: the disk refuses; each index is then either as it was or done.
    """
    keys = list(list_caches(folder))
    counts = dict.fromkeys(keys, 0)
    for name, table in Dataset.open(folder).tables.items():
        stamps = {rows.shard: stamp(table, rows) for rows in list_shards(table)}

        @lru_cache(maxsize=64)
        def names_in(key: str, shard: str, stamps: dict[str, str] = stamps) -> frozenset[str]:
            return finished_names(cache_file(folder, key, shard), stamps[shard]) or frozenset()

        def caches(frame_id: str, shard: str, _: list[str], names_in: Any = names_in) -> list[str]:
            found = [key for key in keys if frame_id in names_in(key, shard)]
            for key in found:
                counts[key] += 1
            return found

        rewrite_frames(folder, name, "caches", caches)
    return counts


def finished_names(file: Path, wanted: str) -> frozenset[str] | None:
    """The names in a cache file, or None where it is missing, damaged, or of another stamp."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np") as opened:
            return frozenset(opened.keys()) if (opened.metadata() or {}).get(FRAMES_STAMP) == wanted else None
    except (OSError, SafetensorError):
        return None
