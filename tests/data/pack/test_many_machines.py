"""Packing shared out over processes that stand for machines: with one killed half-way it gives what one gives."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq

from flexip_model.__main__ import main
from flexip_model.data.format import Dataset

from ...support.paths import ROOT
from ..drawing import pictures
from .test_pack import arguments_of, pack_command

PLACE = ("frame_id", "shard", "offset", "mask_offset")


def rows(folder: Path) -> list[dict]:
    """The index's rows without the places of the bytes."""
    found = pq.read_table(folder / "index" / "pictures.parquet").to_pylist()
    return [
        row | {"frames": [{k: v for k, v in frame.items() if k not in PLACE} for frame in row["frames"]]}
        for row in found
    ]


def test_two_processes_one_of_them_killed_give_what_one_gives(tmp_path: Path, capsys, monkeypatch) -> None:
    source, data = pictures(tmp_path / "source", 80), tmp_path / "data"
    (source / "0003.jpg").write_bytes(b"no picture")
    assert main(arguments_of(source, tmp_path / "whole")) == 0
    processes = [
        subprocess.Popen(
            pack_command(source, data),
            cwd=ROOT,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    while processes[1].poll() is None and len(list((data / "shards").glob("pictures-1*.tar"))) < 2:
        time.sleep(0.001)
    processes[1].send_signal(signal.SIGKILL)
    assert processes[1].wait() == -signal.SIGKILL and processes[0].wait() == 0
    capsys.readouterr()
    assert main(["data", "merge", str(data), "pictures"]) == 2
    assert "1 of 2 shares are missing or unfinished: 1-of-2;" in capsys.readouterr().err
    assert main(arguments_of(source, data)) == 2
    assert "was shared out in another way" in capsys.readouterr().err

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments_of(source, data)) == 0
    out = capsys.readouterr().out
    assert "going on after" in out and "data merge" in out
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    moved = data / "shards" / "pictures-1000000.tar"
    moved.rename(tmp_path / "away.tar")
    assert main(["data", "merge", str(data), "pictures"]) == 2
    assert "share 1-of-2 lacks" in capsys.readouterr().err
    (tmp_path / "away.tar").rename(moved)
    assert main(["data", "merge", str(data), "pictures"]) == 0
    out = capsys.readouterr().out
    assert "79 groups, 79 frames from 80 items" in out and "unreadable: 1" in out
    assert rows(data) == rows(tmp_path / "whole") and len(Dataset.open(data)) == 79
    assert main(["data", "validate", str(data)]) == 0
    assert not list(data.rglob("*.tmp")) and not list(data.rglob("*.parts"))
