"""Benchmarks: the published layouts, the plain form, the dozen that ship, and what is wrong with them."""

import pytest
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.evaluation.benchmarks.benchmark import read_plain, write_plain
from flexip_model.evaluation.benchmarks.opening import open_benchmark

from .making import paint, tiny_benchmark, write_table


def test_the_small_benchmark_ships_whole():
    small = open_benchmark("small")
    assert len(small) == 12 and small.problems == ()
    assert all(len(subject.prompts) == 9 and len(subject.others) == 2 for subject in small)
    assert small["cake"].prompts[0] == "a 3d render of a birthday cake in a green meadow"


def test_the_plain_form_is_read_and_written_back_the_same(tmp_path):
    first = tiny_benchmark(tmp_path / "first")
    write_plain(first, tmp_path / "second")
    second = read_plain(tmp_path / "second")
    assert [(s.id, s.name, s.category, s.prompts) for s in first] == [
        (s.id, s.name, s.category, s.prompts) for s in second
    ]
    assert [s.reference.resolve() for s in first] == [s.reference for s in second]
    assert [len(s.others) for s in second] == [1, 1, 0]
    with pytest.raises(FlexIPError, match="exists already"):
        write_plain(first, tmp_path / "second")


def test_dreambench_plus_as_its_archive_has_it(tmp_path):
    for place, name in (("live_subject/animal/00", "Kitten"), ("object/03", "red bag")):
        paint(tmp_path / "images" / f"{place}.jpg", (120, 30, 90))
        text = tmp_path / "captions" / f"{place}.txt"
        text.parent.mkdir(parents=True)
        text.write_text("\n".join([name, *(f"a {name} doing {number}" for number in range(9))]) + "\n")
    found = open_benchmark(tmp_path)
    assert [s.id for s in found] == ["live_subject_animal_00_kitten", "object_03_red_bag"]
    assert found["object_03_red_bag"].prompts[8] == "a red bag doing 8"
    assert found.problems == ("2 subjects, published are 150",)
    text.unlink()
    with pytest.raises(FlexIPError, match="without the other: object/03"):
        open_benchmark(tmp_path)


def test_dreambooth_as_its_repository_has_it(tmp_path):
    paint(tmp_path / "dataset" / "dog2" / "00.jpg", (90, 60, 30))
    paint(tmp_path / "dataset" / "dog2" / "01.jpg", (90, 60, 40))
    paint(tmp_path / "dataset" / "can" / "00.jpg", (200, 60, 30))
    (tmp_path / "dataset" / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\ncan,can\ndog2,dog\nvase,vase\n\nPrompts\n\nObject Prompts\n\nprompt_list = [\n"
        "'a {0} {1} in the jungle'.format(unique_token, class_token),\n]\n\nLive Subject Prompts\n\nprompt_list = [\n"
        "'a {0} {1} wearing a red hat'.format(unique_token, class_token)\n]\n"
    )
    found = open_benchmark(tmp_path)
    assert [(s.id, s.prompts, len(s.others)) for s in found] == [
        ("can", ("a can in the jungle",), 0),
        ("dog2", ("a dog wearing a red hat",), 1),
    ]
    assert len(found.problems) == 1 and "vase" in found.problems[0]


def test_a_damaged_and_a_missing_picture_are_named(tmp_path):
    tiny_benchmark(tmp_path)
    data = (tmp_path / "cup.png").read_bytes()
    (tmp_path / "cup.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "dog_2.png").unlink()
    problems = open_benchmark(tmp_path).problems
    assert len(problems) == 2
    assert "subject dog: " in problems[0] and "dog_2.png is missing" in problems[0]
    assert "cup.png cannot be read" in problems[1]


@pytest.mark.parametrize(
    ("columns", "rows", "told"),
    [
        (("id", "name"), [("a", "b")], "expected the columns"),
        (("id", "name", "category", "reference", "others"), [("a", "b", "", "x.png", "")] * 2, "comes twice"),
        (("id", "name", "category", "reference", "others"), [], "no lines"),
    ],
)
def test_mistakes_in_the_tables_are_told(tmp_path, columns, rows, told):
    tiny_benchmark(tmp_path)
    write_table(tmp_path / "subjects.csv", columns, rows)
    with pytest.raises(FlexIPError, match=told):
        open_benchmark(tmp_path)


def test_a_prompt_for_nobody_and_a_folder_of_nothing_are_refused(tmp_path):
    tiny_benchmark(tmp_path / "plain")
    write_table(tmp_path / "plain" / "prompts.csv", ("subject", "prompt"), [("bird", "a {}")])
    with pytest.raises(FlexIPError, match="'bird', which is no subject"):
        open_benchmark(tmp_path / "plain")
    with pytest.raises(FlexIPError, match="is no benchmark"):
        open_benchmark(tmp_path)


def test_the_command_says_what_is_in_it(tmp_path, capsys):
    assert main(["evaluate", "benchmark", "--out", str(tmp_path / "mine")]) == 0
    out = capsys.readouterr().out
    assert "12 subjects (animal, food, object)" in out and "108 prompts" in out
    assert main(["evaluate", "benchmark", "--benchmark", str(tmp_path / "mine")]) == 0
    with Image.open(read_plain(tmp_path / "mine")["wolf"].reference) as picture:
        assert picture.size == (160, 160)
