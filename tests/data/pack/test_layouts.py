"""`data pack` on each layout in miniature: what groups, masks, boxes, captions and splits come out."""

from __future__ import annotations

import io
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flexip_model.__main__ import _parser, main
from flexip_model.common.errors import FlexIPError
from flexip_model.data.format import Dataset, Group
from flexip_model.data.pack.layouts import LAYOUTS, find_layout
from flexip_model.data.pack.layouts.segments import brush_mask

from ...support.paths import ROOT
from ..drawing import H, W, disc, mask_picture, picture, save
from . import table_3 as sources
from .table_3 import add


def packed(layout: str, source: Path, data: Path, *more: str) -> list[Group]:
    assert main(["data", "pack", layout, str(source), str(data), *more]) == 0
    assert main(["data", "validate", str(data)]) == 0
    dataset = Dataset.open(data)
    return [dataset.group(i) for i in range(len(dataset))]


def overlap(data: Path, group: Group, number: int, wanted: np.ndarray) -> float:
    """Intersection over union of a frame's mask with what it should be."""
    frame = group.frames[number]
    mask = Dataset.open(data).read_mask(frame)
    assert mask is not None
    found = np.asarray(Image.open(io.BytesIO(mask))) > 127
    assert found.shape == (frame.height, frame.width)
    return float((found & wanted).sum() / (found | wanted).sum())


# source → layout, groups, frames of each (a range for real videos), kind, quality, masks on all frames
EXPECTED = {
    "sa1b": ("sa-1b", 3, [1, 1, 1], "image", "high", True),
    "brushdata": ("brushdata", 3, [1, 1, 1], "image", "base", True),
    "mvimgnet": ("mvimgnet", 2, [8, 8], "multiview", "base", True),
    "mvimgnet_with_alpha": ("mvimgnet", 1, [3], "multiview", "base", True),
    "mvhumannet": ("mvhumannet", 1, [3], "multiview", "high", True),
    "co3dv2": ("co3dv2", 2, [8, 8], "multiview", "base", True),
    "celeba": ("celeba", 3, [2, 2, 3], "multiview", "base", False),
    "meglass": ("meglass", 2, [2, 3], "multiview", "base", False),
    "viton_hd": ("viton-hd", 2, [2, 2], "pair", "high", True),
    "dresscode": ("dresscode", 3, [2, 2, 2], "pair", "base", False),
    "sa_v": ("sa-v", 2, range(2, 5), "video", "high", True),
    "celebv_hq": ("celebv-hq", 3, range(2, 5), "video", "base", False),
    "vfhq": ("vfhq", 3, [3, 4, 4], "video", "base", False),
    "openvid_1m": ("openvid-1m", 2, range(2, 5), "video", "high", False),
}


@pytest.mark.parametrize("source", EXPECTED)
def test_each_layout_of_table_3_in_miniature(source: str, tmp_path: Path, capsys) -> None:
    layout, count, sizes, kind, quality, masks = EXPECTED[source]
    getattr(sources, source)(tmp_path / "source")
    groups = packed(layout, tmp_path / "source", tmp_path / "data")
    assert LAYOUTS[layout].license in capsys.readouterr().out
    assert len(groups) == count
    found = sorted(len(group.frames) for group in groups)
    assert found == sizes if isinstance(sizes, list) else all(count in sizes for count in found)
    assert {(group.kind, group.quality, group.dataset) for group in groups} == {(kind, quality, layout)}
    assert {group.license for group in groups} == {LAYOUTS[layout].license}
    if masks:
        assert all(frame.mask_offset is not None and frame.box is not None for g in groups for frame in g.frames)
    data = Dataset.open(tmp_path / "data")
    for group in groups:
        assert len({frame.hash for frame in group.frames}) == len(group.frames)
        for frame in group.frames:
            assert data.picture(frame).size == (frame.width, frame.height)


def test_celebas_pictures_as_found_are_high_and_are_taken_before_the_aligned_ones(tmp_path: Path) -> None:
    sources.celeba(tmp_path / "source")
    for number in range(1, 8):
        save(picture(100 + number, (400, 300)), tmp_path / "source" / "Img" / "img_celeba" / f"{number:06}.jpg")
    groups = packed("celeba", tmp_path / "source", tmp_path / "data")
    assert {(group.quality, frame.width) for group in groups for frame in group.frames} == {("high", 400)}
    with pytest.raises(FlexIPError, match="--quality high"):
        find_layout("Pexels")


def test_every_layout_of_the_paper_is_there_or_says_why_not(tmp_path: Path, capsys) -> None:
    assert {layout for layout, *_ in EXPECTED.values()} | {"pictures", "videos", "views"} == set(LAYOUTS)
    for name, word in (("pexels", "canonical release"), ("panohead", "generator"), ("nonsense", "choose one of")):
        assert main(["data", "pack", name, str(tmp_path), str(tmp_path / "data")]) == 2
        assert word in capsys.readouterr().err


def test_the_subject_of_an_everything_segmentation_is_neither_background_nor_speck(tmp_path: Path) -> None:
    sources.sa1b(tmp_path / "sa1b")
    for group in packed("sa-1b", tmp_path / "sa1b", tmp_path / "data"):
        assert overlap(tmp_path / "data", group, 0, disc()) == 1.0


def test_brushdata_runs_go_down_the_columns(tmp_path: Path) -> None:
    sources.brushdata(tmp_path / "brush")
    groups = packed("brushdata", tmp_path / "brush", tmp_path / "data")
    assert overlap(tmp_path / "data", groups[0], 0, disc(x=0.3)) == 1.0
    assert groups[2].frames[0].captions == ("a disc, number 2",)
    with pytest.raises(ValueError, match="outside"):
        brush_mask([1, W * H + 1], (H, W))


def test_masks_by_hand_and_automatic_ones_follow_the_frame_of_a_video(tmp_path: Path) -> None:
    sources.sa_v(tmp_path / "sav")
    for group in packed("sa-v", tmp_path / "sav", tmp_path / "data"):
        for i, frame in enumerate(group.frames):
            number = round(frame.time * 24)
            assert number % 4 == 0
            assert overlap(tmp_path / "data", group, i, disc(x=0.2 + (number % 60) / 100)) == 1.0


def test_a_garment_is_reference_and_its_wearer_target_with_the_worn_garment_masked(tmp_path: Path) -> None:
    sources.viton_hd(tmp_path / "viton")
    sources.dresscode(tmp_path / "dress")
    packed("viton-hd", tmp_path / "viton", tmp_path / "data")
    for group in packed("dresscode", tmp_path / "dress", tmp_path / "data"):
        assert [frame.role for frame in group.frames] == ["reference", "target"]
        assert overlap(tmp_path / "data", group, 1, disc((96, 128))) == 1.0


def test_what_comes_from_one_source_stays_in_one_split(tmp_path: Path) -> None:
    sources.celebv_hq(tmp_path / "celebv")
    sources.vfhq(tmp_path / "vfhq")
    groups = packed("celebv-hq", tmp_path / "celebv", tmp_path / "data", "--val", "0.3", "--heldout", "0.3")
    groups += packed("vfhq", tmp_path / "vfhq", tmp_path / "data", "--val", "0.3", "--heldout", "0.3")
    for start in ("M2Ohb0FAaJU", "Clip+G0DGRma_p48"):
        assert len({group.split for group in groups if group.group_id.startswith(start)}) == 1


def test_a_clip_of_a_raw_video_keeps_to_its_seconds_and_has_the_face_box(tmp_path: Path) -> None:
    sources.celebv_hq(tmp_path / "celebv")
    groups = packed("celebv-hq", tmp_path / "celebv", tmp_path / "data")
    second = next(group for group in groups if group.group_id.startswith("M2Ohb0FAaJU_2"))
    assert all(2.0 <= frame.time <= 3.9 for frame in second.frames)
    assert all(np.allclose(frame.box, (0.25 * W, 0.1 * H, 0.75 * W, 0.9 * H)) for frame in second.frames)


def test_own_pictures_with_captions_masks_alpha_and_rotation(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    save(picture(1), source / "plain.jpg")
    (source / "plain.txt").write_text("a red disc\na disc on noise\n")
    save(picture(2), source / "deep" / "masked.png")
    save(mask_picture(disc()), source / "deep" / "masked.mask.png")
    clear = picture(3)
    clear.putalpha(mask_picture(disc()))
    save(clear, source / "clear.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(picture(4), source / "turned.jpg", exif=exif)
    save(picture(5, (1600, 1200)), source / "large.jpg")
    save(picture(6, (40, 30)), source / "tiny.png")
    save(Image.fromarray(np.asarray(picture(7).convert("L")).astype(np.uint16) * 257), source / "deep" / "16bit.png")
    groups = {g.group_id: g for g in packed("pictures", source, tmp_path / "data", "--license", "CC0")}
    assert set(groups) == {"plain.jpg", "deep/masked.png", "clear.webp", "turned.jpg", "large.jpg", "deep/16bit.png"}
    data = Dataset.open(tmp_path / "data")
    plain = groups["plain.jpg"].frames[0]
    assert data.read(plain) == (source / "plain.jpg").read_bytes()
    assert plain.captions == ("a red disc", "a disc on noise") and groups["plain.jpg"].license == "CC0"
    assert overlap(tmp_path / "data", groups["deep/masked.png"], 0, disc()) == 1.0
    assert overlap(tmp_path / "data", groups["clear.webp"], 0, disc()) == 1.0
    assert data.picture(groups["clear.webp"].frames[0]).getpixel((1, 1)) == (255, 255, 255)
    assert (groups["turned.jpg"].frames[0].width, groups["turned.jpg"].frames[0].height) == (H, W)
    assert (groups["large.jpg"].frames[0].width, groups["large.jpg"].frames[0].height) == (853, 640)
    deep = np.asarray(data.picture(groups["deep/16bit.png"].frames[0]).convert("L"), int)
    assert np.abs(deep - np.asarray(picture(7).convert("L"), int)).max() <= 1
    left, top, right, bottom = groups["deep/masked.png"].frames[0].box
    assert abs((left + right) / 2 - W / 2) < 1 and 55 < right - left < 65 and 55 < bottom - top < 65


def test_views_are_spread_over_the_orbit(tmp_path: Path) -> None:
    for view in range(24):
        save(picture(view), tmp_path / "views" / "cup" / f"{view:02}.jpg")
    save(picture(99), tmp_path / "views" / "alone" / "one.jpg")
    (group,) = packed("views", tmp_path / "views", tmp_path / "data", "--views", "8")
    data = Dataset.open(tmp_path / "data")
    found = [data.read(frame) for frame in group.frames]
    assert found == [(tmp_path / "views" / "cup" / f"{view:02}.jpg").read_bytes() for view in range(0, 24, 3)]


def test_a_source_in_another_layout_is_told_what_was_expected(tmp_path: Path, capsys) -> None:
    save(picture(1), tmp_path / "source" / "a.jpg")
    for layout in sorted(set(LAYOUTS) - {"pictures"}):
        assert main(["data", "pack", layout, str(tmp_path / "source"), str(tmp_path / "data")]) == 2, layout
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and str(tmp_path / "source") in err, err
    assert not list((tmp_path / "data").rglob("*.parquet"))


@pytest.mark.promise(46)
def test_members_and_annotations_that_lead_outside_are_not_followed(tmp_path: Path, capsys) -> None:
    secret = save(picture(1), tmp_path / "secret.jpg")
    source = tmp_path / "sa1b"
    sources.sa1b(source)
    with tarfile.open(source / "sa_000009.tar", "w") as tar:
        for name in ("sa_9.jpg", "sa_9.json"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(secret)
            tar.addfile(link)
        add(tar, "../../escaped.jpg", sources.encoded(picture(2)))
        add(tar, "../../escaped.json", b"{}")
    capsys.readouterr()
    assert main(["data", "pack", "sa-1b", str(source), str(tmp_path / "data"), "--broken", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "escaped" in out and "sa_9" not in out  # the one is named as unreadable, a link is passed over
    assert not list(tmp_path.rglob("escaped*")) and not list(tmp_path.parent.glob("escaped*"))
    assert len(Dataset.open(tmp_path / "data")) == 3
    sources.co3dv2(tmp_path / "co3d")
    import gzip
    import json

    table = tmp_path / "co3d" / "apple" / "frame_annotations.jgz"
    rows = json.loads(gzip.decompress(table.read_bytes()))
    rows[0]["image"]["path"] = "../secret.jpg"
    table.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert main(["data", "pack", "co3dv2", str(tmp_path / "co3d"), str(tmp_path / "data"), "--broken", "0.9"]) == 0
    assert "leads out of" in capsys.readouterr().out


def test_the_page_has_every_layout_its_licence_and_commands_that_parse() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[3:] for line in page.splitlines() if line.startswith("python -m flexip_model data ")]
    parsed = [_parser().parse_args(command) for command in commands]
    named = {options.layout for options in parsed if "layout" in options}
    assert named == set(LAYOUTS) - {"views"}
    for layout in LAYOUTS.values():
        assert f"| `{layout.name}` |" in page
        if layout.kind != "image" or layout.name in ("sa-1b", "brushdata"):
            row = next(line for line in page.splitlines() if line.startswith(f"| `{layout.name}` |"))
            assert layout.name in ("videos", "views") or (
                row.endswith(f"| {layout.license} |") and f"| {layout.kind}, {layout.quality} |" in row
            )
