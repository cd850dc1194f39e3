"""What people have on their disks: masks of other kinds, texts in other encodings, maps beside pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.data.format import Dataset, Group, NewFrame, NewGroup, ShardWriter

from ..drawing import H, W, disc, encoded, mask_picture, moving_disc, picture, save, save_video


def packed(layout: str, source: Path, data: Path, *more: str) -> dict[str, Group]:
    assert main(["data", "pack", layout, str(source), str(data), *more]) == 0
    dataset = Dataset.open(data)
    return {group.group_id: group for group in map(dataset.group, range(len(dataset)))}


def overlap(data: Path, group: Group, wanted: np.ndarray) -> float:
    content = Dataset.open(data).read_mask(group.frames[0])
    assert content is not None
    found = np.asarray(Image.open(io.BytesIO(content))) > 127
    return float((found & wanted).sum() / (found | wanted).sum())


def test_masks_of_0_and_1_are_scaled_and_those_that_mark_nothing_are_named(tmp_path: Path, capsys) -> None:
    source, ones = tmp_path / "source", disc().astype(np.uint8)
    masks = {
        "ones": Image.fromarray(ones),
        "deep": Image.fromarray(ones.astype(np.uint16) * 65535),
        "numbers": Image.fromarray(ones.astype(np.float32)),
        "faint": Image.fromarray(ones * 9),
        "black": Image.fromarray(ones * 0),
    }
    for seed, (name, mask) in enumerate(masks.items()):
        save(picture(seed), source / f"{name}.jpg")
        save(mask, source / (f"{name}.mask.tif" if mask.mode == "F" else f"{name}.mask.png"))
    nothing = picture(9)
    nothing.putalpha(0)
    save(nothing, source / "glass.png")
    save(picture(8), source / "plain.jpg")
    groups = packed("pictures", source, tmp_path / "data", "--broken", "0.3")
    told = capsys.readouterr().out
    assert set(groups) == {f"{name}.jpg" for name in (*masks, "plain")}
    for name in ("ones", "deep", "numbers"):
        assert overlap(tmp_path / "data", groups[f"{name}.jpg"], disc()) > 0.99, name
    for name in ("faint", "black"):
        frame = groups[f"{name}.jpg"].frames[0]
        assert frame.mask_offset is None and frame.box is None and f"{name}.jpg: its mask marks nothing" in told
    assert "packed without their mask: 2" in told and "glass.png: it is transparent all over" in told
    assert main(["data", "validate", str(tmp_path / "data")]) == 0


def test_validate_names_masks_without_a_subject_and_captions_that_lost_characters(tmp_path: Path, capsys) -> None:
    writer = ShardWriter(tmp_path / "data", "old", "CC0")
    black = encoded(mask_picture(disc() & False), "PNG")
    frame = NewFrame(encoded(picture(1)), W, H, 1.0, "0" * 16, mask=black, captions=("a gr\ufffdn",))
    writer.add(NewGroup("a", "image", (frame,)))
    writer.close()
    assert main(["data", "validate", str(tmp_path / "data")]) == 2
    out = capsys.readouterr().out
    assert "its mask marks nothing" in out and "a caption lost characters" in out


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_captions_with_a_byte_order_mark_are_read_as_it_says(encoding: str, tmp_path: Path, capsys) -> None:
    save(picture(1), tmp_path / "source" / "a.jpg")
    (tmp_path / "source" / "a.txt").write_text("ein grüner Käfer\n甲虫\n", encoding=encoding)
    groups = packed("pictures", tmp_path / "source", tmp_path / "data")
    assert groups["a.jpg"].frames[0].captions == ("ein grüner Käfer", "甲虫")
    capsys.readouterr()
    assert main(["data", "show", str(tmp_path / "data")]) == 0
    assert "pictures: “ein grüner Käfer”" in capsys.readouterr().out


def test_texts_that_are_not_utf_8_are_named_everywhere(tmp_path: Path, capsys) -> None:
    source, foreign = tmp_path / "source", "ein grüner Käfer".encode("latin-1")
    for seed, name in enumerate("abc"):
        save(picture(seed), source / f"{name}.jpg")
    (source / "b.txt").write_bytes(foreign)
    groups = packed("pictures", source, tmp_path / "data", "--broken", "0.5")
    told = capsys.readouterr().out
    assert set(groups) == {"a.jpg", "c.jpg"} and "b.txt is not UTF-8 (byte 0xFC at 6)" in told
    (tmp_path / "list.txt").write_bytes(b"# " + foreign)
    excluded = [
        "data",
        "pack",
        "pictures",
        str(source),
        str(tmp_path / "other"),
        "--exclude",
        str(tmp_path / "list.txt"),
    ]
    assert main(excluded) == 2 and "list.txt is not UTF-8" in capsys.readouterr().err
    caption = ["data", "caption", str(tmp_path / "data"), "--captioner", "file", "--captions"]
    (tmp_path / "captions.jsonl").write_bytes(b'{"frame_id": "a", "caption": "' + foreign + b'"}\n')
    assert main([*caption, str(tmp_path / "captions.jsonl")]) == 2
    assert "captions.jsonl is not UTF-8" in capsys.readouterr().err
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(foreign)
    assert main([*caption, str(tmp_path / "texts")]) == 2 and "a.txt is not UTF-8" in capsys.readouterr().err
    name = groups["a.jpg"].frames[0].frame_id
    line = json.dumps({"frame_id": name, "caption": "ein grüner Käfer"}, ensure_ascii=False)
    (tmp_path / "captions.jsonl").write_text(line + "\n", encoding="utf-16")
    assert main([*caption, str(tmp_path / "captions.jsonl")]) == 0
    assert Dataset.open(tmp_path / "data").group(0).frames[0].captions == ("ein grüner Käfer",)
    for layout, table in (("celeba", "identity_CelebA.txt"), ("openvid-1m", "OpenVid-1M.csv")):
        folder = tmp_path / layout
        save(picture(1), folder / "img_celeba" / "1.jpg")
        (folder / table).write_bytes(b"video,caption\n1.mp4," + foreign)
        assert main(["data", "pack", layout, str(folder), str(tmp_path / "third")]) == 2
        assert f"{table} is not UTF-8" in capsys.readouterr().err


def test_masks_and_maps_beside_pictures_are_no_pictures_and_what_is_not_taken_is_said(tmp_path: Path, capsys) -> None:
    source = tmp_path / "source"
    for seed, name in enumerate(("dog", "cat", "carnival_mask")):
        save(picture(seed), source / f"{name}.png")
    save(mask_picture(disc()), source / "dog_mask.png")
    save(mask_picture(disc()), source / "cat.mask.jpg", quality=95)
    save(mask_picture(disc()), source / "lost.mask.png")
    save(picture(7), source / "depth" / "dog.png")
    (source / "phone.HEIC").write_bytes(b"0")
    groups = packed("pictures", source, tmp_path / "data")
    told = capsys.readouterr().out
    assert set(groups) == {"dog.png", "cat.png", "carnival_mask.png"}
    assert all(overlap(tmp_path / "data", groups[name], disc()) > 0.98 for name in ("dog.png", "cat.png"))
    for text in (
        "not taken, masks without their picture: lost.mask.png",
        "their names (rename one to take it in): depth",
    ):
        assert text in told
    assert "not taken, files of other kinds: .heic (1)" in told


def test_views_tell_of_lone_pictures_and_of_folders_that_are_no_subject(tmp_path: Path, capsys) -> None:
    source = tmp_path / "source"
    for seed, name in enumerate(("cup/images/1", "cup/images/2", "cup/masks/1", "cup/masks/2", "one/a", "loose")):
        save(picture(seed), source / f"{name}.jpg")
    groups = packed("views", source, tmp_path / "data")
    told = capsys.readouterr().out
    assert set(groups) == {"cup/images"} and "rename one to take it in): cup/masks" in told
    assert "folders with one picture (a group of views has two or more): one" in told
    assert "in no subject's folder: loose.jpg" in told
    (source / "cup" / "images" / "2.jpg").unlink()
    assert main(["data", "pack", "views", str(source), str(tmp_path / "data"), "--name", "b"]) == 2
    assert "2 folders with one picture" in capsys.readouterr().err


def test_videos_without_a_group_are_named(tmp_path: Path, capsys) -> None:
    save_video(tmp_path / "source" / "good.mp4", [moving_disc(1, 48)])
    save_video(tmp_path / "source" / "still.mp4", [moving_disc(2, 1)])
    packed("videos", tmp_path / "source", tmp_path / "data")
    told = capsys.readouterr().out
    assert "two frames that fit): 1\n    still.mp4" in told


def test_the_source_is_never_written_into(tmp_path: Path, capsys) -> None:
    save(picture(1), tmp_path / "source" / "a.jpg")
    for data in (tmp_path / "source", tmp_path / "source" / "deep" / "data"):
        assert main(["data", "pack", "pictures", str(tmp_path / "source"), str(data)]) == 2
        assert "lies in SOURCE" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["a.jpg"]
