"""Pictures of methods: the plain form in its three ways, DreamBench++'s folders, and what was left out."""

import json

import pytest

from flexip_model.common.errors import FlexIPError
from flexip_model.evaluation.pictures.beside import copies, true_pictures
from flexip_model.evaluation.pictures.forms import read_pictures
from flexip_model.evaluation.reading import read_picture

from .making import paint, tiny_benchmark, tiny_pictures


def entries(folder):
    """What `tiny_pictures` wrote, as objects."""
    import csv

    with (folder / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_three_ways_of_the_plain_form_are_one(tmp_path):
    benchmark = tiny_benchmark(tmp_path / "b")
    folder = tiny_pictures(tmp_path / "m", benchmark, (0.0, 0.5, 1.0))
    by_table = read_pictures("mine", folder, benchmark)
    rows = entries(folder)
    (folder / "manifest.csv").unlink()
    (folder / "manifest.json").write_text(json.dumps(rows))
    assert read_pictures("mine", folder, benchmark) == by_table
    (folder / "manifest.json").unlink()
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert read_pictures("mine", folder, benchmark) == by_table
    (folder / "manifest.jsonl").unlink()
    for row in rows:
        (folder / row["file"]).with_suffix(".json").write_text(json.dumps(row))
    assert read_pictures("mine", folder, benchmark) == by_table
    assert len(by_table.pictures) == 18 and by_table.problems == () and by_table.swept_knob() == "gamma"
    assert by_table.pictures[0].prompt == "a cup toy on grass" and by_table.pictures[0].setting() == "gamma=0.5"


def test_dreambench_plus_folders(tmp_path):
    for number in range(2):
        for place in ("src_image", "tgt_image"):
            paint(tmp_path / place / "object_03_red_bag" / f"{number}_1.jpg", (9, 99, 200))
        text = tmp_path / "text" / "object_03_red_bag" / f"{number}_1.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(f"a red bag, {number}\n")
    paint(tmp_path / "tgt_image" / "object_03_red_bag" / "7_0.jpg", (9, 99, 200))
    found = read_pictures("ELITE", tmp_path)
    assert [(p.subject, p.name, p.prompt, p.seed) for p in found.pictures] == [
        ("object_03_red_bag", "red bag", "a red bag, 0", 1),
        ("object_03_red_bag", "red bag", "a red bag, 1", 1),
    ]
    assert found.problems == ("object_03_red_bag/7_0: nothing in src_image and text; it is left out",)
    (tmp_path / "tgt_image" / "object_03_red_bag" / "1_1.jpg").unlink()
    missing = read_pictures("ELITE", tmp_path).pictures[1]
    with pytest.raises(FlexIPError, match="1_1.jpg is missing"):
        read_picture(missing.path)


def test_what_the_benchmark_asks_for_and_is_not_there_is_named(tmp_path):
    benchmark = tiny_benchmark(tmp_path / "b")
    folder = tiny_pictures(tmp_path / "m", benchmark)
    rows = [row for row in entries(folder) if row["file"] != "cup_1_0.7.png"]
    rows += [{"file": "x.png", "subject": "bird", "prompt": "a bird"}, {"file": "y.png", "subject": "dog", "prompt": 9}]
    rows += [{"file": "../z.png", "subject": "dog", "prompt": 0}]
    (folder / "manifest.csv").unlink()
    (folder / "manifest.json").write_text(json.dumps(rows))
    found = read_pictures("mine", folder, benchmark)
    assert len(found.pictures) == 5
    told = "\n".join(found.problems)
    for part in (
        "no subject 'bird'",
        "there is no prompt 9",
        "lies outside",
        "cup_1_0.7.png: no line of a manifest names it",
        "subject cup: 1 of 2 pictures are missing",
    ):
        assert part in told


def test_mistakes_are_refused(tmp_path):
    benchmark = tiny_benchmark(tmp_path / "b")
    with pytest.raises(FlexIPError, match="there is no folder"):
        read_pictures("mine", tmp_path / "none", benchmark)
    folder = tiny_pictures(tmp_path / "m", benchmark)
    rows = entries(folder)
    (folder / "manifest.csv").unlink()
    with pytest.raises(FlexIPError, match="holds no pictures"):
        read_pictures("mine", folder, benchmark)
    (folder / "manifest.json").write_text(json.dumps([*rows, rows[0]]))
    with pytest.raises(FlexIPError, match="twice"):
        read_pictures("mine", folder, benchmark)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(FlexIPError, match="cannot be read"):
        read_pictures("mine", folder, benchmark)


def test_a_copy_and_true_pictures_stand_beside(tmp_path):
    benchmark = tiny_benchmark(tmp_path)
    assert len(copies(benchmark).pictures) == 6
    true = true_pictures(benchmark)
    assert [picture.subject for picture in true.pictures] == ["dog", "cup"]
    assert {picture.prompt for picture in true.pictures} == {""}
