"""Drawn scenes as a data folder for the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexip_model.__main__ import main
from flexip_model.data.format import Dataset
from flexip_model.demo.scenes.compose import STYLE_WORDS
from flexip_model.demo.scenes.dataset import FRAMES, VALIDATION

from ..support.demo_cast import HELD, cast_store, write_store


def test_scenes_are_groups_of_both_kinds_with_masks_and_captions(tmp_path: Path, capsys) -> None:
    write_store(cast_store(), tmp_path / "work" / "store")
    out = tmp_path / "scenes"
    command = ["demo-model", "scenes", "--work", str(tmp_path / "work"), "--groups", "6"]
    assert main([*command, "--out", str(out)]) == 0
    assert main(["data", "validate", str(out)]) == 0
    for kind, count in (("image", 1), ("multiview", FRAMES)):
        for split, groups in (("train", 6), ("val", VALIDATION)):
            found = Dataset.open(out, split, [kind])
            assert len(found) == groups
            for number in range(groups):
                frames = found.group(number).frames
                assert len(frames) == count
                assert all(frame.captions and frame.mask_offset is not None and frame.box for frame in frames)
                for caption in (frame.captions[0] for frame in frames):
                    is_3d = any(words in caption for words in STYLE_WORDS["3d"])
                    assert not (is_3d and any(word in caption for word in HELD)), "a held-out drawing"
    assert main(command) == 2
    assert "scenes needs --out FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["demo-model", "scenery"])
