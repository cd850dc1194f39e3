"""What the tests of `data cache` read back: frames, stored values and readers of a data folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from flexip_model.data.cache.manifest import CacheReader, list_caches
from flexip_model.data.format import Dataset, Frame


def frames_of(folder: Path) -> list[Frame]:
    dataset = Dataset.open(folder)
    return [frame for i in range(len(dataset)) for frame in dataset.group(i).frames]


def values_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name.split('-')[0]} {name}": value.clone()  # load_file maps the file
        for path in sorted((folder / "caches").glob("*/*.safetensors"))
        for name, value in load_file(path).items()
    }


def readers_of(folder: Path) -> dict[str, CacheReader]:
    return {manifest.kind: CacheReader(folder, key) for key, manifest in list_caches(folder).items()}


def near(cached: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    """Equal up to half precision: 1e-3 of the value."""
    return cached is not None and torch.allclose(cached, wanted, rtol=1e-3, atol=1e-3)
