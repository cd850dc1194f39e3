"""Loading an adapter strictly against a plain read of the same file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ...files.adapter_file import build_adapter, load_adapter_file, save_adapter
from ..random_models import random_adapter
from .timing import Row, compare


def adapter_load(rounds: int) -> list[Row]:
    """Time reading a full-size file (fp16): checked and built into a module, against safetensors' `load_file`."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        adapter = random_adapter()
        save_adapter(path, adapter.config, adapter.state_dict(), training={"trained": False})
        megabytes = path.stat().st_size / 1e6

        def plain() -> object:
            return {key: value.clone() for key, value in load_file(path).items()}

        def ours() -> object:
            return build_adapter(*load_adapter_file(path))

        return [compare(f"load an adapter ({megabytes:.0f} MB) against a plain read", ours, plain, rounds=rounds)]
