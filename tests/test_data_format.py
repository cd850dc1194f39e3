"""The data format: what is written is read, damage is found, nothing is lost by a kill or a full disk."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flexip_model.cli import main
from flexip_model.data.format import (
    SCHEMA,
    Dataset,
    NewFrame,
    NewGroup,
    ShardWriter,
)
from flexip_model.data.pixels import dhash, sharpness
from flexip_model.data.split import NearHashes, split_of
from flexip_model.errors import FlexIPError

from .data_sources import H, W, disc, encoded, mask_picture, picture, save, save_video, scene

ROOT = Path(__file__).resolve().parent.parent


def new_frame(seed: int, **changes) -> NewFrame:
    image = picture(seed)
    values = {"picture": encoded(image), "width": W, "height": H, "sharpness": sharpness(image.convert("L")),
              "dhash": f"{dhash(image.convert('L')):016x}", "mask": encoded(mask_picture(disc()), "PNG"),
              "captions": (f"picture {seed}",), "box": (50.0, 30.0, 110.0, 90.0)}
    return NewFrame(**{**values, **changes})


def make(folder: Path, name: str = "pets", groups: int = 6, **changes) -> Path:
    writer = ShardWriter(folder, name, "CC0", "made for a test", max_bytes=20_000)
    for i in range(groups):
        kind = "video" if i % 2 else "image"
        frames = tuple(new_frame(10 * i + j, time=j / 2 if i % 2 else None) for j in range(2 if i % 2 else 1))
        split = ("train", "train", "val", "heldout")[i % 4]
        writer.add(NewGroup(f"g{i}", kind, frames, split, **changes))
    writer.close()
    return folder


def groups_of(data: Dataset) -> list:
    return [data.group(i) for i in range(len(data))]


def test_a_group_comes_back_as_it_was_written(tmp_path: Path) -> None:
    data = Dataset.open(make(tmp_path / "data"))
    assert len(data) == 6 and len(list((tmp_path / "data" / "shards").iterdir())) > 1
    group = data.group(3)
    assert (group.group_id, group.dataset, group.kind, group.quality, group.license, group.split, group.variant) == (
        "g3", "pets", "video", "base", "CC0", "heldout", True)
    frame, written = group.frames[1], new_frame(31, time=0.5)
    for name in ("width", "height", "time", "role", "box", "captions", "dhash"):
        assert getattr(frame, name) == getattr(written, name), name
    assert frame.sharpness == pytest.approx(written.sharpness)
    assert data.read(frame) == written.picture and data.read_mask(frame) == written.mask
    assert np.array_equal(np.asarray(data.picture(frame)), np.asarray(Image.open(io.BytesIO(written.picture))))


def test_shards_are_plain_webdataset_tars(tmp_path: Path) -> None:
    """Any tar reader finds samples: members of one key lie together, the key is the frame's id."""
    folder = make(tmp_path / "data")
    frames = {frame.frame_id: frame for group in groups_of(Dataset.open(folder)) for frame in group.frames}
    seen = []
    for shard in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if suffix != "mask.png":
                    seen.append(key)
                    assert tar.extractfile(member).read() == Dataset.open(folder).read(frames[key])
                assert key == seen[-1] and member.isreg()
    assert sorted(seen) == sorted(frames) and len(set(seen)) == 9


def test_split_kind_and_quality_select(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    make(folder, "more", 4, quality="high")
    assert len(Dataset.open(folder)) == 10
    assert [g.group_id for g in groups_of(Dataset.open(folder, "train", ["video"]))] == ["g1", "g1", "g5"]
    assert [g.dataset for g in groups_of(Dataset.open(folder, "train", qualities=["high"]))] == ["more", "more"]
    assert Dataset.open(folder, "heldout").column("group_id").to_pylist() == ["g3", "g3"]
    with pytest.raises(FlexIPError, match="no split"):
        Dataset.open(folder, "test")


def _read_some(data: Dataset, queue) -> None:
    for _ in range(5):
        for group in groups_of(data):
            for frame in group.frames:
                queue.put((frame.frame_id, data.read(frame) == new_frame(int(frame.captions[0].split()[1])).picture))


def test_forked_workers_and_their_parent_read_at_once(tmp_path: Path) -> None:
    data = Dataset.open(make(tmp_path / "data"))
    data.read(data.group(0).frames[0])  # a shard is open before the fork
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_read_some, args=(data, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    right = []
    while len(right) < 2 * 5 * 9:
        right.append(queue.get()[1])
        assert data.read(data.group(1).frames[0]) == new_frame(10).picture
    for worker in workers:
        worker.join()
    assert all(right)
    again = pickle.loads(pickle.dumps(data))
    assert again.read(again.group(2).frames[0]) == new_frame(20).picture


def test_a_picture_that_a_shard_no_longer_has_is_an_error_by_name(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    data = Dataset.open(folder)
    frame = data.group(5).frames[1]
    _cut_a_shard(folder)
    with pytest.raises(FlexIPError, match=f"{frame.shard} is too short: {frame.frame_id}"):
        data.picture(frame)
    (folder / "shards" / data.group(0).frames[0].shard).unlink()
    with pytest.raises(FlexIPError, match="cannot be read"):
        data.read(data.group(0).frames[0])


def test_a_folder_that_takes_no_derived_file_is_read_all_the_same(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    (folder / "index" / "pets.arrow").mkdir()
    assert len(Dataset.open(folder)) == 6


def _future_version(folder: Path) -> None:
    path = folder / "flexip-data.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 9'))


def _no_column(folder: Path) -> None:
    path = folder / "index" / "pets.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["quality"]), path)


def _other_type(folder: Path) -> None:
    path = folder / "index" / "pets.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("split")
    pq.write_table(table.set_column(place, "split", pa.array(range(6))), path)


def _cut_index(folder: Path) -> None:
    path = folder / "index" / "pets.parquet"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(("damage", "words"), [
    (_future_version, "version 9, this pack reads version 1"), (_no_column, "lacks the column 'quality'"),
    (_other_type, "column 'split' is int64"), (_cut_index, "cannot be read"),
    (shutil.rmtree, "is no data folder"),
])
def test_what_cannot_be_opened_is_refused_in_a_sentence(tmp_path: Path, damage, words: str, capsys) -> None:
    folder = make(tmp_path / "data")
    damage(folder)
    with pytest.raises(FlexIPError, match=words):
        Dataset.open(folder)
    assert main(["data", "validate", str(folder)]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def _rows(folder: Path, change) -> None:
    path = folder / "index" / "pets.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def _flip_a_bit(folder: Path) -> None:
    frame = Dataset.open(folder).group(1).frames[0]
    with (folder / "shards" / frame.shard).open("r+b") as file:
        file.seek(frame.offset + frame.bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def _cut_a_shard(folder: Path) -> None:
    path = sorted((folder / "shards").glob("*.tar"))[-1]
    path.write_bytes(path.read_bytes()[:1500])


FAULTS = {
    "a flipped bit": (_flip_a_bit, "do not have its hash"),
    "a cut shard": (_cut_a_shard, "too short"),
    "a missing shard": (lambda folder: sorted((folder / "shards").glob("*.tar"))[0].unlink(), "No such file"),
    "a wrong place": (lambda f: _rows(f, lambda r: r[0]["frames"][0].update(offset=1024)), "in its place"),
    "another frame's place": (lambda f: _rows(f, lambda r: r[1]["frames"][0].update(
        {k: r[1]["frames"][1][k] for k in ("offset", "bytes", "hash")})), "in its place"),
    "a wrong size": (lambda f: _rows(f, lambda r: r[0]["frames"][0].update(width=99)), "the index says otherwise"),
    "a box outside": (lambda f: _rows(f, lambda r: r[0]["frames"][0].update(box=[0, 0, 999, 9])), "is not inside"),
    "a way out": (lambda f: _rows(f, lambda r: r[0]["frames"][0].update(shard="../x.tar")), "names a shard"),
    "an unknown kind": (lambda f: _rows(f, lambda r: r[0].update(kind="hologram")), "'hologram' is none of"),
    "a group twice": (lambda f: _rows(f, lambda r: r[1].update(group_id="g0")), "two splits"),
    "a frame twice": (lambda f: _rows(f, lambda r: r.append({**r[0], "group_id": "g9"})), "frame ids occur more"),
    "held out and trained on": (lambda f: _rows(f, lambda r: r.append({**r[0], "group_id": "g9", "split": "heldout"})),
                                "in train and, as the same picture, in heldout"),
    "a dataset without entry": (lambda f: (f / "flexip-data.json").write_text(
        '{"format": "flexip-data", "version": 1, "datasets": {}}'), "has no entry"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_validate_finds_and_names_each_fault(tmp_path: Path, fault: str, capsys) -> None:
    folder = make(tmp_path / "data")
    assert main(["data", "validate", str(folder)]) == 0
    damage, words = FAULTS[fault]
    damage(folder)
    capsys.readouterr()
    assert main(["data", "validate", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert words in out and "pets" in out and "is damaged" in err


def test_show_counts_and_gives_the_licences(tmp_path: Path, capsys) -> None:
    assert main(["data", "show", str(make(tmp_path / "data"))]) == 0
    out = capsys.readouterr().out
    assert "pets: CC0" in out
    assert [line.split() for line in out.splitlines() if "video" in line] == [
        ["pets", "video", "base", "heldout", "1", "2", "2", "2"],
        ["pets", "video", "base", "train", "2", "4", "4", "4"]]


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


def pictures(source: Path, count: int, first: int = 0) -> Path:
    for i in range(first, first + count):
        save(picture(i, (320, 240)), source / f"{i:04}.jpg", quality=90)
    return source


def arguments_of(source: Path, data: Path, *more: str) -> list[str]:
    return ["data", "pack", "pictures", str(source), str(data), "--shard-megabytes", "0.1", *more]


def pack_command(*arguments) -> list[str]:
    return [sys.executable, "-m", "flexip_model", *arguments_of(*arguments)]


def contents(folder: Path) -> dict[str, bytes]:
    shards = {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}
    rows = json.dumps(pq.read_table(folder / "index" / "pictures.parquet").to_pylist(), sort_keys=True)
    return {**shards, "rows": rows.encode()}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_killed_run_goes_on_and_gives_what_one_run_gives(tmp_path: Path, processes: str, capsys) -> None:
    source = pictures(tmp_path / "source", 60)
    (source / "0003.jpg").write_bytes(b"no picture")
    assert main(arguments_of(source, tmp_path / "whole")) == 0
    killed = 0
    for shards in (2, 5)[int(processes) - 1:]:
        process = subprocess.Popen(pack_command(source, tmp_path / "data", "--processes", processes), cwd=ROOT,
                                   stdout=subprocess.DEVNULL)
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
    process = subprocess.Popen(pack_command(source, data), cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
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
    make(data, "before")

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


def test_excluded_pictures_and_near_copies_of_them_never_get_in(tmp_path: Path, capsys) -> None:
    source, bench = pictures(tmp_path / "source", 20), tmp_path / "bench"
    same = (source / "0001.jpg").read_bytes()
    bench.mkdir()
    (bench / "one.jpg").write_bytes(same)
    save(Image.open(source / "0002.jpg").resize((200, 150)), bench / "deeper" / "two.png")
    save(Image.open(source / "0003.jpg"), bench / "three.jpg", quality=40)
    hashes = tmp_path / "hashes.txt"
    same_file = hashlib.sha256((source / "0005.jpg").read_bytes()).hexdigest()
    near = dhash(Image.open(source / "0004.jpg").convert("L")) ^ 1
    hashes.write_text(f"# more\n{same_file}\n{near:016x}  # one bit off\n\n")
    assert main(["data", "pack", "pictures", str(source), str(tmp_path / "data"), "--exclude", str(bench),
                 str(hashes)]) == 0
    assert "kept out by --exclude, the same file or a near copy: 5" in capsys.readouterr().out
    found = {group.group_id for group in groups_of(Dataset.open(tmp_path / "data"))}
    assert found == {f"{i:04}.jpg" for i in (0, *range(6, 20))}
    hashes.write_text("hello\n")
    for place, words in ((hashes, "line 1"), (tmp_path / "nowhere", "no such"), (tmp_path / "data", "no pictures")):
        assert main(["data", "pack", "pictures", str(source), str(tmp_path / "other"), "--exclude", str(place)]) == 2
        assert words in capsys.readouterr().err


def test_copies_of_heldout_pictures_leave_training_in_every_dataset(tmp_path: Path, capsys) -> None:
    """Whichever comes first: the new dataset's copies stay out, and those of an older dataset are taken out."""
    data, first, second = tmp_path / "data", pictures(tmp_path / "a", 12), pictures(tmp_path / "b", 30, 100)
    for i in range(12):  # every picture of the first is in the second again, smaller and recompressed
        save(Image.open(first / f"{i:04}.jpg").resize((280, 210)), second / f"copy{i}.jpg", quality=60)
    for name, source in (("first", first), ("second", second)):
        assert main(["data", "pack", "pictures", str(source), str(data), "--name", name, "--heldout", "0.3",
                     "--val", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "left out of the index, copies" in out and "taken out of other datasets' indexes" in out
    groups = groups_of(Dataset.open(data))
    seen: dict[str, set[str]] = {}
    for group in groups:
        number = int("".join(c for c in group.group_id if c.isdigit()))
        if number < 100:
            seen.setdefault(f"picture {number}", set()).add(group.split)
    assert len(seen) == 12 and all(len(splits) == 1 for splits in seen.values())
    assert {group.split for group in groups} == {"train", "val", "heldout"}
    assert main(["data", "validate", str(data)]) == 0


def test_near_hashes_find_all_within_the_distance_and_no_more() -> None:
    random = np.random.default_rng(0)
    known = random.integers(0, 2**64, 500, np.uint64)
    queries, wanted = [], []
    for distance in range(8):
        for value in known[:50]:
            bits = random.choice(64, distance, replace=False)
            queries.append(value ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64), initial=np.uint64(0)))
            wanted.append(distance)
    for limit in (0, 3, 6, 7):
        who, other = NearHashes(known, limit).pairs(np.array(queries, np.uint64))
        assert sorted(who) == [i for i, distance in enumerate(wanted) if distance <= limit]
        assert [i % 50 for i in who] == other.tolist()


def test_pictures_of_one_shape_in_other_colours_are_no_copies(tmp_path: Path, capsys) -> None:
    """Difference hashes see brightness alone: flags of one pattern have the same."""
    for name, colours in (("a", ("white", "red")), ("b", ("white", "blue"))):
        image = Image.new("RGB", (300, 200), colours[0])
        image.paste(colours[1], (150, 0, 300, 200))
        save(image, tmp_path / name / f"{name}.png")
    assert dhash(Image.open(tmp_path / "a/a.png").convert("L")) == dhash(Image.open(tmp_path / "b/b.png").convert("L"))
    assert main(["data", "pack", "pictures", str(tmp_path / "a"), str(tmp_path / "data"), "--exclude",
                 str(tmp_path / "b")]) == 0
    assert "kept out" not in capsys.readouterr().out


def test_splits_have_their_shares_and_never_move() -> None:
    keys = [f"subject {i}" for i in range(20_000)]
    splits = [split_of(key, 0.02, 0.05) for key in keys]
    assert abs(splits.count("heldout") / 20_000 - 0.02) < 0.004 and abs(splits.count("val") / 20_000 - 0.05) < 0.006
    assert all(split_of(key, 0.03, 0.05) == "heldout" for key, split in zip(keys, splits, strict=True)
               if split == "heldout")


def test_other_commands_need_none_of_the_data_packages() -> None:
    code = ("import sys\nfor name in ('pyarrow', 'av', 'PIL', 'pycocotools'): sys.modules[name] = None\n"
            "from flexip_model.cli import main\n"
            "assert main(['inspect', 'nothing.safetensors']) == 2\n"
            "assert main(['data', 'show', '.']) == 2")
    end = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    assert "needs pyarrow: run `pip install -e '.[train]'` in the pack's folder" in end.stderr


def test_own_videos_and_pictures_share_a_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 5)
    save_video(tmp_path / "videos" / "a.mp4", [scene(1, 48)])
    for layout in ("pictures", "videos"):
        assert main(["data", "pack", layout, str(tmp_path / layout), str(tmp_path / "data")]) == 0
    data = Dataset.open(tmp_path / "data")
    assert sorted(set(data.column("kind").to_pylist())) == ["image", "video"] and len(data) == 6
