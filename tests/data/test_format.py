"""The data format: what is written is read, and damage is found and named."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.data.format import SCHEMA, Dataset, NewFrame, NewGroup, ShardWriter
from flexip_model.data.pack.pixels import dhash, sharpness

from .drawing import H, W, disc, encoded, groups_of, mask_picture, picture


def new_frame(seed: int, **changes) -> NewFrame:
    image = picture(seed)
    values = {
        "picture": encoded(image),
        "width": W,
        "height": H,
        "sharpness": sharpness(image.convert("L")),
        "dhash": f"{dhash(image.convert('L')):016x}",
        "mask": encoded(mask_picture(disc()), "PNG"),
        "captions": (f"picture {seed}",),
        "box": (50.0, 30.0, 110.0, 90.0),
    }
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


def test_a_group_comes_back_as_it_was_written(tmp_path: Path) -> None:
    data = Dataset.open(make(tmp_path / "data"))
    assert len(data) == 6 and len(list((tmp_path / "data" / "shards").iterdir())) > 1
    group = data.group(3)
    assert (group.group_id, group.dataset, group.kind, group.quality, group.license, group.split, group.variant) == (
        "g3",
        "pets",
        "video",
        "base",
        "CC0",
        "heldout",
        True,
    )
    frame, written = group.frames[1], new_frame(31, time=0.5)
    for name in ("width", "height", "time", "role", "box", "captions", "dhash"):
        assert getattr(frame, name) == getattr(written, name), name
    assert frame.sharpness == pytest.approx(written.sharpness)
    assert data.read(frame) == written.picture and data.read_mask(frame) == written.mask
    assert np.array_equal(np.asarray(data.picture(frame)), np.asarray(Image.open(io.BytesIO(written.picture))))
    mask = data.mask(frame)
    assert (mask.shape, mask.dtype, mask.min(), mask.max()) == ((H, W), np.float32, 0, 1)
    assert np.array_equal(mask, disc()) and data.mask(replace(frame, mask_offset=None)) is None


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


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_future_version, "version 9, this pack reads version 1"),
        (_no_column, "lacks the column 'quality'"),
        (_other_type, "column 'split' is int64"),
        (_cut_index, "cannot be read"),
        (shutil.rmtree, "is no data folder"),
    ],
)
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
    "another frame's place": (
        lambda f: _rows(
            f, lambda r: r[1]["frames"][0].update({k: r[1]["frames"][1][k] for k in ("offset", "bytes", "hash")})
        ),
        "in its place",
    ),
    "a wrong size": (lambda f: _rows(f, lambda r: r[0]["frames"][0].update(width=99)), "the index says otherwise"),
    "a box outside": (lambda f: _rows(f, lambda r: r[0]["frames"][0].update(box=[0, 0, 999, 9])), "is not inside"),
    "a way out": (lambda f: _rows(f, lambda r: r[0]["frames"][0].update(shard="../x.tar")), "names a shard"),
    "an unknown kind": (lambda f: _rows(f, lambda r: r[0].update(kind="hologram")), "'hologram' is none of"),
    "a group twice": (lambda f: _rows(f, lambda r: r[1].update(group_id="g0")), "two splits"),
    "a frame twice": (lambda f: _rows(f, lambda r: r.append({**r[0], "group_id": "g9"})), "frame ids occur more"),
    "held out and trained on": (
        lambda f: _rows(f, lambda r: r.append({**r[0], "group_id": "g9", "split": "heldout"})),
        "in train and, as the same picture, in heldout",
    ),
    "a dataset without entry": (
        lambda f: (f / "flexip-data.json").write_text('{"format": "flexip-data", "version": 1, "datasets": {}}'),
        "has no entry",
    ),
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
        ["pets", "video", "base", "train", "2", "4", "4", "4"],
    ]
