"""`data caption`: real captioners at tiny sizes, other tools' files, what is kept when it is stopped or killed."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flexip_model.__main__ import _parser, main
from flexip_model.common.errors import FlexIPError
from flexip_model.data.caption.captioners import CAPTIONERS, FORMS, CaptionerChoice, capped
from flexip_model.data.caption.captioning import CaptionTask, caption
from flexip_model.data.caption.captiontext import count, shorten, tidy
from flexip_model.data.format import Dataset, Frame

from ...support.paths import ROOT
from ..data_folder import scene, write_folder
from ..pack.table_3 import openvid_1m
from .tiny_captioners import write_blip, write_qwen2_vl

FIRST = "a disc"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen2_vl(tmp_path_factory.mktemp("qwen2-vl"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four groups of 1, 3, 1 and 3 frames in two shards; the first frame has the caption `FIRST`."""
    return write_folder(tmp_path / "data")


def frames_of(folder: Path) -> list[Frame]:
    dataset = Dataset.open(folder)
    return [frame for i in range(len(dataset)) for frame in dataset.group(i).frames]


def captions_of(folder: Path) -> dict[str, tuple[str, ...]]:
    return {frame.frame_id: frame.captions for frame in frames_of(folder)}


def write_lines(path: Path, captions: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"frame_id": k, "caption": v}) + "\n" for k, v in captions.items()))
    return path


class Counter:
    """Another captioner: it numbers what it is asked, and may do something at its nth call."""

    looks = True

    def __init__(self, at: int = 0, act=lambda: None) -> None:
        self.asked: list[str] = []
        self._calls, self._at, self._act = 0, at, act

    def __call__(self, frames, pictures):
        assert len(frames) == len(pictures) and all(picture.mode == "RGB" for picture in pictures)
        self._calls += 1
        if self._calls == self._at:
            self._act()
        self.asked += [frame.frame_id for frame in frames]
        return [f"thing {frame.frame_id}" for frame in frames]


def test_qwen2_vl_answers_alike_alone_and_in_a_padded_batch(qwen: Path) -> None:
    captioner = CAPTIONERS["qwen2-vl"](CaptionerChoice("qwen2-vl", str(qwen)))
    pictures = [scene(1, 60, 50)[0], scene(2, 400, 300)[0], scene(3, 60, 250)[0]]
    together = captioner([None] * 3, pictures)
    assert together == [captioner([None], [picture])[0] for picture in pictures]
    assert len(set(together)) == 3
    assert "assistant" not in "".join(map(str, together))


def test_the_papers_form_of_captions_is_the_default_and_names_looks(qwen: Path, data, tmp_path) -> None:
    """4.1: detailed captions; the other form leaves fine looks to the reference."""
    asked = {form: CAPTIONERS["qwen2-vl"](CaptionerChoice("qwen2-vl", str(qwen), form=form)).question for form in FORMS}
    assert CAPTIONERS["qwen2-vl"](CaptionerChoice("qwen2-vl", str(qwen))).question == asked["detailed"]
    assert "its colors, patterns, materials, clothes" in asked["detailed"] and "Do not describe" in asked["scene"]
    assert _parser().parse_args(["data", "caption", "x"]).form == "detailed"
    long = " ".join(["A red dog in a green coat runs over a beach."] * 20)
    file = write_lines(tmp_path / "long.jsonl", dict.fromkeys(captions_of(data), long))
    for form, least, most in (("detailed", 100, 140), ("scene", 40, 59)):
        caption(CaptionTask(data, "file", captions=file, form=form, again=True))
        assert all(least < count(texts[0]) <= most for texts in captions_of(data).values())
    with pytest.raises(FlexIPError, match="there is no form 'long'"):
        caption(CaptionTask(data, "file", captions=file, form="long"))


def test_large_pictures_are_capped_and_keep_their_proportions() -> None:
    large = capped(scene(0, 1600, 800)[0])
    assert large.width * large.height <= 448 * 448
    assert abs(large.width / large.height - 2) < 0.01
    assert capped(scene(0, 90, 60)[0]).size == (90, 60)


def test_every_frame_gets_a_caption_in_the_index_and_those_that_have_one_keep_it(data, qwen, capsys) -> None:
    assert main(["data", "caption", str(data), "--model", str(qwen), "--batch", "3", "--device", "cpu"]) == 0
    found = captions_of(data)
    assert len(found) == 8 and all(len(texts) == 1 for texts in found.values())
    assert next(iter(found.values())) == (FIRST,)
    assert all(count(texts[0]) <= FORMS["detailed"].tokens for texts in found.values())
    assert "8 of 8 frames have a caption" in capsys.readouterr().out
    assert sorted(path.name for path in (data / "index").iterdir()) == ["drawn.arrow", "drawn.parquet"]


def test_a_model_that_captions_unasked(data, tmp_path) -> None:
    caption(CaptionTask(data, "blip", str(write_blip(tmp_path / "blip")), batch=4, device="cpu"))
    assert all(texts and texts[0] for texts in captions_of(data).values())


def test_captions_are_cut_where_a_sentence_ends() -> None:
    sentence = "A dog runs over a beach."
    long = " ".join([sentence] * 12)
    assert shorten(long, 59) == " ".join([sentence] * 8) and count(shorten(long, 59)) < 60 < count(long)
    assert shorten(sentence, 59) == sentence
    clauses = shorten("a dog, " * 40, 59)
    assert clauses.endswith("a dog") and 50 < count(clauses) < 60
    assert 50 < count(shorten("word " * 90, 59)) < 60 and 0 < count(shorten("犬" * 300, 59)) < 60
    assert tidy(' "A dog,\n on\u2028 a\x14 beach." ') == "A dog, on a beach."


def test_captions_of_another_tool(data, tmp_path, capsys) -> None:
    ids = list(captions_of(data))
    file = write_lines(tmp_path / "vllm.jsonl", {name: f"thing {i}" for i, name in enumerate(ids)})
    with file.open("a") as lines:
        lines.write(json.dumps({"__key__": ids[3], "text": " ".join(["A long sentence of seven words here."] * 20)}))
    command_line = ["data", "caption", str(data), "--captioner", "file", "--captions", str(file)]
    assert main(command_line) == 0
    found = captions_of(data)
    assert found[ids[0]] == (FIRST,) and found[ids[1]] == ("thing 1",)
    assert found[ids[3]][0].endswith("words here.") and 100 < count(found[ids[3]][0]) <= FORMS["detailed"].tokens
    assert "1 captions cut" in capsys.readouterr().out
    assert main([*command_line, "--again"]) == 0
    assert captions_of(data)[ids[0]] == ("thing 0",)

    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / f"{ids[2]}.txt").write_text("from a folder\n")
    assert main(["data", "caption", str(data), "--captioner", "file", "--captions", str(texts), "--again"]) == 0
    assert captions_of(data)[ids[2]] == ("from a folder",) and captions_of(data)[ids[1]] == ("thing 1",)


def test_empty_captions_and_repeats_within_a_group_are_told(data, tmp_path, capsys) -> None:
    ids = list(captions_of(data))
    texts = dict.fromkeys(ids, "the same thing") | {ids[0]: "", ids[-1]: " \n", ids[-2]: "one", ids[-3]: "two"}
    report = caption(CaptionTask(data, "file", captions=write_lines(tmp_path / "a.jsonl", texts)))
    assert (report.frames, report.without, report.groups, report.repeats) == (8, 1, 2, 1)
    assert report.first_without == [ids[-1]] and report.first_repeats == ["g1"]
    lines = "\n".join(report.lines())
    assert f"1 frames have none, such as {ids[-1]}" in lines and "in 1 of 2 groups" in lines and "in g1" in lines


def test_an_unreadable_picture_is_passed_over_and_named(tmp_path, monkeypatch, caplog) -> None:
    data = write_folder(tmp_path / "data", broken=2)
    monkeypatch.setitem(CAPTIONERS, "blip", lambda choice: Counter())
    with caplog.at_level(logging.INFO):
        report = caption(CaptionTask(data, "blip", batch=4))
    assert report.without == 1 and report.first_without == [list(captions_of(data))[2]]
    assert f"left out: drawn-000000.tar: {report.first_without[0]} cannot be decoded" in caplog.text


def stop() -> None:
    raise KeyboardInterrupt


def test_what_was_captioned_before_a_stop_is_in_the_index_and_not_asked_again(data, monkeypatch) -> None:
    first, second = Counter(2, stop), Counter()
    monkeypatch.setitem(CAPTIONERS, "blip", lambda choice: first)
    with pytest.raises(KeyboardInterrupt):
        caption(CaptionTask(data, "blip", batch=2, again=True))
    kept = captions_of(data)
    assert len(first.asked) == 2
    assert all(kept[name] == (f"thing {name}",) for name in first.asked) and () in kept.values()
    monkeypatch.setitem(CAPTIONERS, "blip", lambda choice: second)
    caption(CaptionTask(data, "blip", batch=2, again=True))
    assert sorted(first.asked + second.asked) == sorted(kept)
    assert all(texts == (f"thing {name}",) for name, texts in captions_of(data).items())


def test_sigterm_stops_as_ctrl_c_does(data, monkeypatch) -> None:
    monkeypatch.setitem(CAPTIONERS, "blip", lambda choice: Counter(2, lambda: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(SystemExit) as stopped:
        main(["data", "caption", str(data), "--captioner", "blip", "--batch", "2"])
    assert stopped.value.code == 130
    assert sum(bool(texts) for texts in captions_of(data).values()) == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


KILLED = """
import os, sys
from pathlib import Path
from flexip_model.data.caption.captioners import CAPTIONERS
from flexip_model.data.caption.captioning import CaptionTask, caption
class Killed:
    looks, calls = True, 0
    def __call__(self, frames, pictures):
        self.calls += 1
        if self.calls == 4:
            os.kill(os.getpid(), 9)
        return [f"before {frame.frame_id}" for frame in frames]
CAPTIONERS["blip"] = lambda choice: Killed()
caption(CaptionTask(Path(sys.argv[1]), "blip", batch=2))
"""


def test_after_kill_9_only_the_batch_in_hand_is_asked_again(data, monkeypatch) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(data)], cwd=ROOT, check=False)
    assert done.returncode == -9
    log = next((data / "index").glob("drawn.captions/*.part"))
    with log.open("a") as file:
        file.write('{"frame_id": "cut sh')  # what a kill during a write leaves
    rest = Counter()
    monkeypatch.setitem(CAPTIONERS, "blip", lambda choice: rest)
    caption(CaptionTask(data, "blip", batch=2))
    found = captions_of(data)
    before = [name for name, texts in found.items() if texts[0].startswith("before")]
    assert len(before) == 5 and len(rest.asked) == 2
    assert sorted([*before, *rest.asked, next(iter(found))]) == sorted(found)


def test_shards_are_shared_out_under_torchrun_and_the_first_process_writes_the_index(data, monkeypatch) -> None:
    captioners = [Counter(), Counter()]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setitem(CAPTIONERS, "blip", lambda choice, rank=rank: captioners[rank])
        caption(CaptionTask(data, "blip"))
        assert all(captions_of(data).values()) == (rank == 0)
    assert captioners[0].asked and captioners[1].asked and not set(captioners[0].asked) & set(captioners[1].asked)
    with pytest.raises(FlexIPError, match="cannot be used under torchrun"):
        caption(CaptionTask(data, "blip"), processes=2)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """OpenVid-1M in miniature, packed: every frame of a clip has the clip's caption."""
    openvid_1m(tmp_path / "openvid")
    data = tmp_path / "clips"
    assert main(["data", "pack", "openvid-1m", str(tmp_path / "openvid"), str(data), "--frames", "4"]) == 0
    return data


def texts_by_group(folder: Path) -> list[list[tuple[str, ...]]]:
    dataset = Dataset.open(folder)
    return [[frame.captions for frame in dataset.group(i).frames] for i in range(len(dataset))]


def test_frames_that_share_their_clips_caption_get_one_of_their_own(clips, monkeypatch, capsys) -> None:
    before = texts_by_group(clips)
    assert before and all(len(texts) > 1 and len(set(texts)) == 1 and texts[0] for texts in before)
    assert main(["data", "validate", str(clips)]) == 0
    assert f"{len(before)} of {len(before)} variant groups have one caption for all" in capsys.readouterr().out
    monkeypatch.setitem(CAPTIONERS, "blip", lambda choice: Counter())
    assert main(["data", "caption", str(clips), "--captioner", "blip", "--keep-shared"]) == 0
    assert texts_by_group(clips) == before
    assert main(["data", "caption", str(clips), "--captioner", "blip"]) == 0
    after = texts_by_group(clips)
    assert all(len(set(texts)) == len(texts) and texts[0][0].startswith("thing") for texts in after)
    capsys.readouterr()
    assert main(["data", "validate", str(clips)]) == 0
    assert "one caption for all" not in capsys.readouterr().out


def test_a_stop_in_the_middle_of_a_clip_leaves_no_frame_with_the_clips_caption(clips, monkeypatch) -> None:
    monkeypatch.setitem(CAPTIONERS, "blip", lambda choice: Counter(2, stop))
    with pytest.raises(KeyboardInterrupt):
        caption(CaptionTask(clips, "blip", batch=1))
    assert sum(texts[0].startswith("thing") for group in texts_by_group(clips) for texts in group) == 1
    rest = Counter()
    monkeypatch.setitem(CAPTIONERS, "chat", lambda choice: rest)
    caption(CaptionTask(clips, "chat", batch=1))
    every = [texts[0] for group in texts_by_group(clips) for texts in group]
    assert all(text.startswith("thing") for text in every) and len(rest.asked) == len(every) - 1


def test_mistakes_get_one_sentence(data, qwen, tmp_path, capsys) -> None:
    lines, foreign = tmp_path / "bad.jsonl", write_lines(tmp_path / "other.jsonl", {"elsewhere-0": "a thing"})
    lines.write_text('{"frame_id": "a", "caption": "b"}\n{"frame_id": "a"}\n')
    blip = write_blip(tmp_path / "blip")
    for arguments, message in (
        ([], "needs --model FOLDER"),
        (["--model", "Qwen/Qwen2-VL-7B-Instruct"], "there is no folder Qwen/Qwen2-VL-7B-Instruct.*--download"),
        (["--model", str(tmp_path)], "cannot be loaded as --captioner qwen2-vl"),
        (["--model", str(blip), "--captioner", "chat"], "has no chat template"),
        (["--captioner", "file"], "needs --captions FILE"),
        (["--captioner", "file", "--captions", str(tmp_path / "none")], "none cannot be read"),
        (["--captioner", "file", "--captions", str(lines)], "bad.jsonl, line 2: expected an object"),
        (["--captioner", "file", "--captions", str(foreign)], "names none of the frames, its first is 'elsewhere-0'"),
        (["--model", str(qwen), "--batch", "0"], "must be at least 1"),
    ):
        assert main(["data", "caption", str(data), *arguments]) == 2, arguments
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert re.search(message, error), error
    assert [bool(texts) for texts in captions_of(data).values()] == [True, *[False] * 7]


def test_a_folder_without_pickles(tmp_path, data) -> None:
    """A model that has only a pickled file is refused, never opened."""
    folder = write_blip(tmp_path / "blip")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FlexIPError, match="cannot be loaded"):
        caption(CaptionTask(data, "blip", str(folder)))


def test_the_commands_captioners_are_those_of_the_table() -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args(["data", "caption", "x", "--captioner", "nobody"])
    for name in CAPTIONERS:
        assert _parser().parse_args(["data", "caption", "x", "--captioner", name]).captioner == name
