"""To a machine with a card and without a network, and back: one folder goes there, files of a limited size return."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from ...common.errors import FlexIPError
from ...files.safefile import atomic, sha256
from ..scenes.packed import pack, unpack
from ..scenes.store import INDEX as STORE_INDEX
from ..scenes.store import Store
from .finished import ADAPTERS, NETWORKS, STORE, TEXT, TOKENIZER, need, weights_of
from .run import RECORD

log = logging.getLogger(__name__)

MIB = 1 << 20
MOST_BROUGHT = 60 * MIB
PART, MOST_RETURNED = 15 * MIB, 64 * MIB
ARCHIVE = "store.zip"
LIST = "returns.json"
"""Says which files came back, in which parts, and their hashes; written last."""
PACKAGES = """the machine needs torch, transformers and accelerate of its own, and these, fetched here for its Python:
  pip download --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 -d WHEELS pydantic
  pip download --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 -d WHEELS --no-deps \\
      diffusers open_clip_torch ftfy wcwidth
and installed there with: pip install --no-index --no-deps WHEELS/*.whl"""


def bring(work: Path, folder: Path, judge: Path) -> int:
    """Write what `train` and `evaluate-adapters` need on a machine without a network; returns its size in bytes.

    Args:
        work: with store, tokenizer and text encoder.
        judge: the weights file of the judge.

    Raises:
        FlexIPError: a stage is missing; it is above `MOST_BROUGHT`.
    """
    need(work / STORE / STORE_INDEX, "data")
    need(work / TOKENIZER / "vocab.json", "data")
    need(work / TEXT / "config.json", "names")
    folder.mkdir(parents=True, exist_ok=True)
    pack(Store.open(work / STORE), folder / ARCHIVE)
    for name in (TOKENIZER, TEXT):
        shutil.copytree(work / name, folder / name, dirs_exist_ok=True)
    shutil.copyfile(judge, folder / judge.name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BROUGHT:
        raise FlexIPError(
            f"{folder} has {size / MIB:.1f} MiB, more than the {MOST_BROUGHT // MIB} that may travel; "
            "begin with an empty folder, or take fewer looks into the store"
        )
    log.info(f"{folder}: {size / MIB:.1f} MiB; {PACKAGES}")
    return size


def unpack_brought(folder: Path, work: Path) -> None:
    """Lay out in a work folder what `bring` wrote; a store that lies there already is kept.

    Raises:
        FlexIPError: something is missing in `folder`.
    """
    wanted = (folder / ARCHIVE, folder / TOKENIZER / "vocab.json", folder / TEXT / "config.json")
    missing = [path.relative_to(folder).as_posix() for path in wanted if not path.exists()]
    if missing:
        raise FlexIPError(f"{folder} has no {', '.join(missing)}; expected a folder that `demo-model bring` wrote")
    if not (work / STORE / STORE_INDEX).exists():
        unpack(folder / ARCHIVE, work / STORE)
    for name in (TOKENIZER, TEXT):
        shutil.copytree(folder / name, work / name, dirs_exist_ok=True)


def write_returns(work: Path, folder: Path, wanted: Sequence[str] = ()) -> list[str]:
    """Write what is finished in a work folder as files of at most `PART` bytes, at most `MOST_RETURNED` together.

    Networks come first, then adapters in the order of `wanted`, then others. Optimizers and unfinished networks stay
    where they are: a leg elsewhere goes on from the finished stages.

    Returns:
        What did not fit and was left out.
    """
    if (folder / LIST).exists():
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    listed: dict[str, dict[str, object]] = {}
    left_out, room = [], MOST_RETURNED - MIB  # for the list itself
    for path in _finished(work, wanted):
        name, size = path.relative_to(work).as_posix(), path.stat().st_size
        if size > room:
            left_out.append(name)
            continue
        room -= size
        parts: list[str] = []
        with path.open("rb") as file:
            while data := file.read(PART):
                parts.append(f"{name.replace('/', '--')}.{len(parts)}")
                (folder / parts[-1]).write_bytes(data)
        listed[name] = {"parts": parts, "sha256": sha256(path)}
    with atomic(folder / LIST) as temporary:
        temporary.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    log.info(f"{folder}: {len(listed)} finished files, {(MOST_RETURNED - MIB - room) / MIB:.1f} MiB")
    if left_out:
        log.warning(f"no room in {MOST_RETURNED // MIB} MiB for {', '.join(left_out)}: measure them where they are")
    return left_out


def _finished(work: Path, wanted: Sequence[str]) -> list[Path]:
    networks = [weights_of(work, stage) for stage in NETWORKS]
    made = [path for path in networks if path.exists()]
    found = [p for path in made for p in (path, path.with_name(RECORD), path.with_name("sheet.png")) if p.exists()]
    if weights_of(work, "places").exists():  # stands for both
        found = [path for path in found if path != weights_of(work, "base")]
    adapters = {path.stem: path for path in sorted((work / ADAPTERS).glob("*.safetensors"))}
    order = [*(name for name in wanted if name in adapters), *(name for name in adapters if name not in wanted)]
    runs = sorted((work / ADAPTERS).glob(f"run-*/{RECORD}")) if adapters else []
    return [*found, *runs, *(adapters[name] for name in order)]


def _clear(folder: Path) -> None:
    for told in json.loads((folder / LIST).read_text(encoding="utf-8")).values():
        for part in told["parts"]:
            (folder / part).unlink(missing_ok=True)
    (folder / LIST).unlink()


def take_returned(folder: Path, work: Path) -> None:
    """Put back what `write_returns` wrote; files that lie in the work folder already are kept.

    Raises:
        FlexIPError: there is no list, a part is missing, or a file is damaged.
    """
    if not (folder / LIST).is_file():
        raise FlexIPError(f"{folder} has no {LIST}; expected a folder that `demo-model train --returns` wrote")
    for name, told in json.loads((folder / LIST).read_text(encoding="utf-8")).items():
        path = work / name
        if path.exists():
            continue
        missing = [part for part in told["parts"] if not (folder / part).is_file()]
        if missing:
            raise FlexIPError(f"{folder} has no {', '.join(missing)}; copy the whole folder back")
        with atomic(path) as temporary:
            with temporary.open("wb") as file:
                for part in told["parts"]:
                    file.write((folder / part).read_bytes())
            if sha256(temporary) != told["sha256"]:
                raise FlexIPError(f"{name} in {folder} is damaged (SHA-256); copy the whole folder back")
