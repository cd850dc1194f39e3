"""A data folder, and how the tiny networks are to make its caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexip_model.data.cache.encode import CacheTask

from ..data_folder import write_folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four groups of 1, 3, 1 and 3 frames in two shards; frames 0 and 4 have a mask, 1 to 3 a box."""
    return write_folder(tmp_path / "data")


@pytest.fixture
def task(data: Path, tiny_folder: Path) -> CacheTask:
    encoders = tiny_folder / "encoders"
    return CacheTask(
        data,
        str(tiny_folder),
        str(encoders / "clip_vision.safetensors"),
        str(encoders / "dinov2.safetensors"),
        size=32,
        batch=2,
        threads=2,
        device="cpu",
    )
