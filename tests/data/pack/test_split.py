"""Splits: they never move, and copies of held-out and excluded pictures stay out of training."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.data.format import Dataset
from flexip_model.data.pack.pixels import dhash
from flexip_model.data.pack.split import NearHashes, split_of

from ..drawing import groups_of, pictures, save


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
    assert (
        main(["data", "pack", "pictures", str(source), str(tmp_path / "data"), "--exclude", str(bench), str(hashes)])
        == 0
    )
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
        assert (
            main(
                ["data", "pack", "pictures", str(source), str(data), "--name", name, "--heldout", "0.3", "--val", "0.2"]
            )
            == 0
        )
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
    for name, colors in (("a", ("white", "red")), ("b", ("white", "blue"))):
        image = Image.new("RGB", (300, 200), colors[0])
        image.paste(colors[1], (150, 0, 300, 200))
        save(image, tmp_path / name / f"{name}.png")
    assert dhash(Image.open(tmp_path / "a/a.png").convert("L")) == dhash(Image.open(tmp_path / "b/b.png").convert("L"))
    assert (
        main(
            ["data", "pack", "pictures", str(tmp_path / "a"), str(tmp_path / "data"), "--exclude", str(tmp_path / "b")]
        )
        == 0
    )
    assert "kept out" not in capsys.readouterr().out


def test_splits_have_their_shares_and_never_move() -> None:
    keys = [f"subject {i}" for i in range(20_000)]
    splits = [split_of(key, 0.02, 0.05) for key in keys]
    assert abs(splits.count("heldout") / 20_000 - 0.02) < 0.004 and abs(splits.count("val") / 20_000 - 0.05) < 0.006
    assert all(
        split_of(key, 0.03, 0.05) == "heldout" for key, split in zip(keys, splits, strict=True) if split == "heldout"
    )
