"""Checkpoints that a crash cannot spoil: safetensors files and a manifest of their hashes in one folder each.

A folder is filled under a temporary name, every file synced, then renamed; only then are old ones removed. Nothing in
it is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...common.errors import FlexIPError
from ...files.safefile import load_tensors, sha256

_NAME = re.compile(r"step-(\d{7,})$")
_MANIFEST = "manifest.json"
VERSION = 2

Parts = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read.

    Attributes:
        step: optimizer steps so far.
        parts: tensors by part (`weights`, `ema`, `optimizer`), on the CPU.
        info: everything else that was saved with it, as JSON.
    """

    step: int
    parts: dict[str, dict[str, Tensor]]
    info: dict[str, Any]


def save(
    folder: Path, step: int, parts: Parts, info: Mapping[str, Any], *, keep: int, spare: Collection[int] = ()
) -> Path:
    """Write a checkpoint into `folder` and remove all but the newest `keep`, and those of the steps in `spare`.

    Raises:
        FlexIPError: the disk is full or cannot be written; earlier checkpoints are as they were.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = folder / f"step-{step:07d}"
    if target.exists():
        return target
    temporary = folder / f".saving-{step:07d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".saving-*"):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        hashes = {}
        for name, tensors in parts.items():
            path = temporary / f"{name}.safetensors"
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
            _sync(path)
            hashes[path.name] = sha256(path)
        manifest = temporary / _MANIFEST
        manifest.write_text(
            json.dumps({"version": VERSION, "step": step, "sha256": hashes, "info": dict(info)}, indent=1),
            encoding="utf-8",
        )
        _sync(manifest)
        _sync(temporary)
        temporary.rename(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        there = list_steps(folder)
        newest = f"the newest one there is step-{there[-1]:07d} and is intact" if there else "there is no earlier one"
        raise FlexIPError(
            f"the checkpoint of step {step} could not be written to {folder} ({error}); {newest}: make room or let "
            "this user write there, then start the same command again"
        ) from error
    for old in set(list_steps(folder)[:-keep]) - set(spare):
        shutil.rmtree(folder / f"step-{old:07d}", ignore_errors=True)
    return target


def list_steps(folder: Path) -> list[int]:
    """Steps of all checkpoints in a folder, whole or damaged, oldest first.

    Raises:
        FlexIPError: the folder cannot be read.
    """
    try:
        return sorted(int(match[1]) for p in folder.iterdir() if (match := _NAME.match(p.name)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise FlexIPError(f"the checkpoints in {folder} cannot be listed ({error.strerror or error})") from error


def load(folder: Path, step: int) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        FlexIPError: it is not there, incomplete, changed since it was written, or of another version.
    """
    path = folder / f"step-{step:07d}"
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        version, hashes = manifest["version"], manifest["sha256"]
        if version != VERSION:
            raise FlexIPError(f"{path} has checkpoint version {version}, this trainer reads {VERSION}")
        for name, wanted in hashes.items():
            if sha256(path / name) != wanted:
                raise FlexIPError(f"{path / name} is not as it was written")
        parts = {name.removesuffix(".safetensors"): load_tensors(path / name) for name in hashes}
        return Checkpoint(int(manifest["step"]), parts, manifest["info"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, FlexIPError):
            raise
        raise FlexIPError(f"{path} is damaged ({error})") from error


def load_newest(folder: Path, *, set_aside: bool = True) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint (None if there is none), and a sentence for each newer one that is damaged.

    Args:
        set_aside: damaged ones are renamed, so that their step can be saved again; a reader leaves them.

    Raises:
        FlexIPError: a damaged one cannot be renamed.
    """
    complaints: list[str] = []
    for step in reversed(list_steps(folder)):
        try:
            return load(folder, step), complaints
        except FlexIPError as error:
            complaints.append(f"{error}; it is passed over")
            path = folder / f"step-{step:07d}"
            if set_aside:
                try:
                    path.rename(folder / f"damaged-{path.name}-{os.getpid()}")
                except OSError as refused:
                    raise FlexIPError(
                        f"{error}, and it cannot be moved out of the way ({refused.strerror or refused}); remove {path}"
                    ) from refused
    return None, complaints


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and needs not
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
