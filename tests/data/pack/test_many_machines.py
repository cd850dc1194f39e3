"""Packing shared out over processes that stand for machines: with one killed half-way it gives what one gives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.common.processes import Share
from flexip_model.data.format import Dataset, ShardWriter, shards
from flexip_model.data.pack.merging import merge

from ...support.paths import ROOT
from ..drawing import picture, pictures, save
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


def pack_shares(monkeypatch: pytest.MonkeyPatch, world: int, arguments: list[str], *ranks: int) -> list[int]:
    """Pack shares one after another, all of them where no ranks are given; the exit codes."""
    codes = []
    with monkeypatch.context() as change:
        change.setenv("WORLD_SIZE", str(world))
        for rank in ranks or range(world):
            change.setenv("RANK", str(rank))
            codes.append(main(arguments))
    return codes


def test_copies_of_what_is_held_out_are_found_in_other_shares(tmp_path: Path, monkeypatch, capsys) -> None:
    source = pictures(tmp_path / "source", 20)
    for number in range(20):
        save(picture(number).resize((120, 90)), source / f"small {number:02}.jpg", quality=60)
    more = ["--heldout", "0.3", "--val", "0.2"]
    assert main(arguments_of(source, tmp_path / "whole", *more)) == 0
    line = next(text for text in capsys.readouterr().out.splitlines() if "left out of the index, copies" in text)
    assert pack_shares(monkeypatch, 3, arguments_of(source, tmp_path / "data", *more)) == [0, 0, 0]
    capsys.readouterr()
    assert main(["data", "merge", str(tmp_path / "data"), "pictures"]) == 0
    assert line in capsys.readouterr().out and rows(tmp_path / "data") == rows(tmp_path / "whole")


def test_shares_are_not_mixed_with_other_options_or_pictures_left_out(tmp_path: Path, monkeypatch, capsys) -> None:
    source, data = pictures(tmp_path / "source", 8), tmp_path / "data"
    (data / "index").mkdir(parents=True)
    (data / "index" / ".pictures.parquet.0123.tmp").touch()
    arguments = arguments_of(source, data)
    exclude = ["--exclude", str(save(picture(3), tmp_path / "out" / "a.png").parent)]
    assert pack_shares(monkeypatch, 2, arguments) == [0, 0]
    assert pack_shares(monkeypatch, 2, arguments, 1) == [0]
    assert "is packed; with all of them" in capsys.readouterr().out
    assert pack_shares(monkeypatch, 2, [*arguments, "--val", "0.5"], 0) == [2]
    assert "had val 0.01 and this one has 0.5" in capsys.readouterr().err
    assert pack_shares(monkeypatch, 2, [*arguments, *exclude], 0) == [2]
    assert "had exclude" in capsys.readouterr().err
    own = data / "index" / "pictures.parts" / "1-of-2"
    for more, what in ((exclude, "with another exclude"), (["--min-side", "32"], "with another min_side")):
        shutil.rmtree(own)
        assert pack_shares(monkeypatch, 2, [*arguments, *more], 1) == [0]
        with pytest.raises(FlexIPError, match=f"0 and 1 of 'pictures' were packed {what}; delete the folder") as caught:
            merge(data, "pictures")
    shutil.rmtree(own)
    save(picture(99), source / "more.jpg")
    assert pack_shares(monkeypatch, 2, arguments, 1) == [0]
    with pytest.raises(FlexIPError, match="were packed from sources that differ"):
        merge(data, "pictures")
    shutil.rmtree(own)
    (source / "more.jpg").unlink()
    assert pack_shares(monkeypatch, 2, arguments, 1) == [0]
    # The error above still refers to its merge, which must have given up the dataset all the same.
    assert caught.value and merge(data, "pictures").items == 8 and not list(data.rglob("*.tmp"))


def test_files_that_were_cut_short_on_their_way_are_told(tmp_path: Path, monkeypatch) -> None:
    data = tmp_path / "data"
    assert pack_shares(monkeypatch, 2, arguments_of(pictures(tmp_path / "source", 8), data)) == [0, 0]
    own = data / "index" / "pictures.parts" / "1-of-2"
    for file, what in (
        (data / "shards" / "pictures-1000000.tar", r"1-of-2: \S+ has 100 bytes, and [\d,]+ were written; bring it"),
        (own / "000000.parquet", r"1-of-2: \S+ cannot be read \(.*; bring it again"),
        (own / "done.json", r"done.json cannot be read \(.*; bring it again, or delete"),
    ):
        content = file.read_bytes()
        file.write_bytes(content[:100])
        with pytest.raises(FlexIPError, match=what):
            merge(data, "pictures")
        file.write_bytes(content)
    assert merge(data, "pictures").items == 8


def test_a_merge_that_was_killed_before_its_last_step_leaves_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    source, data = pictures(tmp_path / "source", 4), tmp_path / "data"
    assert pack_shares(monkeypatch, 2, arguments_of(source, data)) == [0, 0]
    parts = data / "index" / "pictures.parts"
    shutil.copytree(parts, tmp_path / "parts")
    assert main(["data", "merge", str(data), "pictures"]) == 0
    for command in (["data", "merge", str(data), "pictures"], arguments_of(source, data)):
        shutil.copytree(tmp_path / "parts", parts)
        assert main(command) == 2 and not parts.exists()
        assert "has a dataset 'pictures' already" in capsys.readouterr().err
    shutil.copytree(tmp_path / "parts", parts)
    assert pack_shares(monkeypatch, 2, arguments_of(source, data), 1) == [2] and not parts.exists()
    assert len(Dataset.open(data)) == 4


def test_few_broken_files_do_not_end_a_small_share_and_many_end_the_merge(tmp_path: Path, monkeypatch, capsys) -> None:
    source, data = pictures(tmp_path / "source", 24), tmp_path / "data"
    (source / "0003.jpg").write_bytes(b"no picture")
    assert pack_shares(monkeypatch, 6, arguments_of(source, data)) == [0] * 6
    assert merge(data, "pictures").broken == 1
    (source / "0004.jpg").write_bytes(b"no picture")
    arguments = arguments_of(source, data, "--name", "again")
    assert pack_shares(monkeypatch, 6, arguments) == [0] * 6
    capsys.readouterr()
    assert main(["data", "merge", str(data), "again"]) == 2
    assert "2 of 24 pictures or videos cannot be read, more than the 5%" in capsys.readouterr().err
    shutil.rmtree(data / "index" / "again.parts")
    assert pack_shares(monkeypatch, 6, [*arguments, "--broken", "0.1"]) == [0] * 6
    assert merge(data, "again").broken == 2


def test_a_source_of_another_layout_is_refused_by_each_share(tmp_path: Path, monkeypatch, capsys) -> None:
    source = tmp_path / "source"
    save(picture(0), source / "thing" / "a.jpg")
    arguments = ["data", "pack", "videos", str(source), str(tmp_path / "data")]
    for world in (1, 2):
        assert pack_shares(monkeypatch, world, arguments) == [2] * world
        assert capsys.readouterr().err.count("holds nothing in the layout videos") == world


def test_what_another_writer_is_at_is_left_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "STARTING", 0.2)
    shares = [ShardWriter(tmp_path, "pets", "CC0", share=Share(rank, 2)) for rank in range(2)]
    for world in (1, 3):
        with pytest.raises(FlexIPError, match="shared out in another way .[01]-of-2 in"):
            ShardWriter(tmp_path, "pets", "CC0", share=Share(world - 1, world))
    with pytest.raises(FlexIPError, match="another process is writing the dataset 'pets.0-of-2'"):
        merge(tmp_path, "pets")
    for share in shares:
        share.abandon()
    whole = ShardWriter(tmp_path, "pets", "CC0")
    # Its first shard is not complete: the lock alone tells of it.
    with pytest.raises(FlexIPError, match="another process is writing the dataset 'pets'"):
        ShardWriter(tmp_path, "pets", "CC0", share=Share(0, 2))
    whole.abandon()
    other = tmp_path / "shards" / ".pets-2-000000.tar.tmp"
    other.touch()
    ShardWriter(tmp_path, "pets", "CC0").abandon()
    assert other.exists()
