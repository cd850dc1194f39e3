"""Packing pictures and videos: nothing is lost by a kill, a signal or a full disk, and nothing is written over."""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flexip_model.__main__ import main
from flexip_model.data.format import Dataset, NewFrame, NewGroup, ShardWriter
from flexip_model.data.pack.heldout import keep_apart

from ...support.paths import ROOT
from ..drawing import encoded, moving_disc, picture, pictures, save, save_video


def arguments_of(source: Path, data: Path, *more: str) -> list[str]:
    return ["data", "pack", "pictures", str(source), str(data), "--shard-megabytes", "0.1", *more]


def pack_command(*arguments) -> list[str]:
    return [sys.executable, "-m", "flexip_model", *arguments_of(*arguments)]


def contents(folder: Path) -> dict[str, bytes]:
    shards = {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}
    rows = json.dumps(pq.read_table(folder / "index" / "pictures.parquet").to_pylist(), sort_keys=True)
    return {**shards, "rows": rows.encode()}


def test_a_dataset_is_never_written_over(tmp_path: Path, capsys) -> None:
    source = tmp_path / "source"
    save(picture(1), source / "a.jpg")
    arguments = ["data", "pack", "pictures", str(source), str(tmp_path / "data")]
    assert main(arguments) == 0
    before = (tmp_path / "data" / "index" / "pictures.parquet").read_bytes()
    (tmp_path / "data" / "index" / "pictures.parts").mkdir()
    assert main(arguments) == 2
    assert not (tmp_path / "data" / "index" / "pictures.parts").exists()
    assert "has a dataset 'pictures' already" in capsys.readouterr().err
    assert (tmp_path / "data" / "index" / "pictures.parquet").read_bytes() == before
    assert main([*arguments, "--name", "../x"]) == 2


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_killed_run_goes_on_and_gives_what_one_run_gives(tmp_path: Path, processes: str, capsys) -> None:
    source = pictures(tmp_path / "source", 60)
    (source / "0003.jpg").write_bytes(b"no picture")
    assert main(arguments_of(source, tmp_path / "whole")) == 0
    killed = 0
    for shards in (2, 5)[int(processes) - 1 :]:
        process = subprocess.Popen(
            pack_command(source, tmp_path / "data", "--processes", processes), cwd=ROOT, stdout=subprocess.DEVNULL
        )
        while process.poll() is None and len(list((tmp_path / "data" / "shards").glob("pictures-*.tar"))) < shards:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 3 - int(processes) and not (tmp_path / "data" / "index" / "pictures.parquet").exists()
    capsys.readouterr()
    assert main(arguments_of(source, tmp_path / "data")) == 0
    out = capsys.readouterr().out
    assert "going on after" in out and "from 60 items" in out and "unreadable: 1" in out
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert not list((tmp_path / "data").rglob("*.tmp")) and not list((tmp_path / "data").rglob("*.parts"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_completes_the_shard_in_hand(tmp_path: Path, number: int, capsys) -> None:
    source, data = pictures(tmp_path / "source", 80), tmp_path / "data"
    process = subprocess.Popen(
        pack_command(source, data), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not list((data / "shards").glob("pictures-*.tar")):
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, err) == (128 + number, ""), (out, err)
    assert "the same command goes on" in out
    assert main(arguments_of(source, data)) == 0
    assert "going on after" in capsys.readouterr().out and len(Dataset.open(data)) == 80


def test_an_unfinished_run_is_not_mixed_with_another_one(tmp_path: Path, capsys) -> None:
    source, data = pictures(tmp_path / "source", 30), tmp_path / "data"
    (source / "0029.jpg").write_bytes(b"no picture")
    arguments = ["data", "pack", "pictures", str(source), str(data), "--shard-megabytes", "0.1", "--broken", "0"]
    assert main(arguments) == 2
    assert "1 of 30 pictures" in capsys.readouterr().err
    assert main([*arguments, "--val", "0.5"]) == 2
    assert "had val 0.01 and this one has 0.5" in capsys.readouterr().err
    (source / "0000.jpg").rename(source / "zzzz.jpg")
    assert main([*arguments, "--broken", "0.1"]) == 2
    assert "changed since the unfinished run" in capsys.readouterr().err
    (source / "zzzz.jpg").rename(source / "0000.jpg")
    assert main([*arguments, "--broken", "0.1"]) == 0
    assert len(Dataset.open(data)) == 29 and main(["data", "validate", str(data)]) == 0


def test_a_full_disk_is_loud_and_loses_nothing(tmp_path: Path) -> None:
    source, data = pictures(tmp_path / "source", 30, 100), tmp_path / "data"
    assert main(arguments_of(pictures(tmp_path / "before", 6), data, "--name", "before")) == 0

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    full = subprocess.run(pack_command(source, data), cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files)
    assert full.returncode == 2
    assert "cannot be written" in full.stderr and "run the same command again" in full.stderr
    assert full.stderr.count("\n") == 1
    assert main(["data", "validate", str(data)]) == 0 and len(Dataset.open(data)) == 6
    assert not list(data.rglob("*.tmp"))
    assert main(arguments_of(source, data)) == 0
    assert len(Dataset.open(data)) == 36 and main(["data", "validate", str(data)]) == 0


def test_unreadable_pictures_are_skipped_counted_and_named_up_to_a_share(tmp_path: Path, capsys) -> None:
    source = pictures(tmp_path / "source", 40)
    good = (source / "0000.jpg").read_bytes()
    for i, content in enumerate((b"", b"text", good[: len(good) // 2], good[:100])):
        (source / f"bad{i}.jpg").write_bytes(content)
    arguments = ["data", "pack", "pictures", str(source), str(tmp_path / "data")]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "4 of 44 pictures or videos cannot be read, more than the 5%" in err and "bad0.jpg" in err
    assert not (tmp_path / "data" / "index" / "pictures.parquet").exists()
    assert main([*arguments, "--broken", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "unreadable: 4" in out and all(f"bad{i}.jpg" in out for i in range(4))
    assert len(Dataset.open(tmp_path / "data")) == 40


def test_own_videos_and_pictures_share_a_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 5)
    save_video(tmp_path / "videos" / "a.mp4", [moving_disc(1, 48)])
    for layout in ("pictures", "videos"):
        assert main(["data", "pack", layout, str(tmp_path / layout), str(tmp_path / "data")]) == 0
    data = Dataset.open(tmp_path / "data")
    assert sorted(set(data.column("kind").to_pylist())) == ["image", "video"] and len(data) == 6


def test_other_commands_need_none_of_the_data_packages() -> None:
    code = (
        "import sys\nfor name in ('pyarrow', 'av', 'PIL', 'pycocotools'): sys.modules[name] = None\n"
        "from flexip_model.__main__ import main\n"
        "assert main(['inspect', 'nothing.safetensors']) == 2\n"
        "assert main(['data', 'show', '.']) == 2"
    )
    end = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    assert "needs pyarrow: run `pip install -e '.[train]'` in the pack's folder" in end.stderr


def _pack_with_others(number: int, data: Path, gate) -> None:
    writer = ShardWriter(data, f"set{number}", f"license {number}")
    content = encoded(picture(number))
    writer.add(NewGroup("a", "image", (NewFrame(content, 160, 120, 1.0, f"{number:016x}"),)))
    writer.flush()
    gate.wait()
    keep_apart(writer)


def test_packs_into_one_folder_at_once_lose_no_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(8)
    workers = [context.Process(target=_pack_with_others, args=(n, tmp_path / "data", gate)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    declared = json.loads((tmp_path / "data" / "flexip-data.json").read_text())["datasets"]
    assert {name: entry["license"] for name, entry in declared.items()} == {f"set{n}": f"license {n}" for n in range(8)}
    assert main(["data", "validate", str(tmp_path / "data")]) == 0 and len(Dataset.open(tmp_path / "data")) == 8


def test_a_dataset_is_written_by_one_process_at_a_time(tmp_path: Path, capsys) -> None:
    source = pictures(tmp_path / "source", 3)
    first = ShardWriter(tmp_path / "data", "pictures", "CC0")
    assert main(arguments_of(source, tmp_path / "data")) == 2
    assert "another process is writing the dataset 'pictures'" in capsys.readouterr().err
    assert main(arguments_of(source, tmp_path / "data", "--name", "others")) == 0
    first.abandon()
    assert main(arguments_of(source, tmp_path / "data")) == 0
