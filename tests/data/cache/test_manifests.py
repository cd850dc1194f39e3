"""Which cache fits: stale ones are noticed, damaged ones refused, and mistakes get one sentence."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.data.cache.encode import CacheTask, make_caches
from flexip_model.data.cache.makers import load_vae
from flexip_model.data.cache.manifest import Manifest, check_cache, clip_manifest, latents_manifest, list_caches
from flexip_model.encoders import load_clip

from .cached import frames_of


def test_a_stale_cache_is_noticed_and_told_what_differs(task: CacheTask, tiny_folder: Path) -> None:
    vae, clip = load_vae(tiny_folder), load_clip(task.clip)
    with pytest.raises(FlexIPError, match=r"has no cache of VAE latents; make one with .*data cache"):
        check_cache(task.folder, latents_manifest(vae, 32))
    make_caches(replace(task, dino=None))
    key = check_cache(task.folder, latents_manifest(vae, 32))
    assert list_caches(task.folder)[key].kind == "latents"
    assert check_cache(task.folder, clip_manifest(clip)).startswith("clip-")
    # Others on a shared disk may read what any of its files may be read by.
    modes = {path.stat().st_mode for path in (task.folder / "caches" / key).iterdir()}
    assert modes == {(task.folder / "index" / "drawn.parquet").stat().st_mode} and len(modes) == 1

    other, decoder = copy.deepcopy(vae), copy.deepcopy(vae)
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(1.01)
        decoder.decoder.conv_in.weight.mul_(1.01)
    assert check_cache(task.folder, latents_manifest(decoder, 32)) == key
    scaled = copy.deepcopy(vae)
    scaled.register_to_config(scaling_factor=0.13025)
    clip.weights_hash = "0123456789abcdef"
    for wanted, message in (
        (latents_manifest(other, 32), r"is stale, it was made with another VAE \(weights \w+\*0\.18215, now \w+"),
        (latents_manifest(scaled, 32), r"another VAE .*now \w+\*0\.13025"),
        (latents_manifest(vae, 64), r"another size \(32 px, now 64 px\)"),
        (latents_manifest(other, 64), r"another VAE .* and another size"),
        (replace(clip_manifest(load_clip(task.clip)), flips=True), "no mirrored pictures, which are asked for now"),
        (clip_manifest(clip), r"another CLIP encoder \(weights \w+, now 0123456789abcdef\)"),
        (replace(clip_manifest(load_clip(task.clip)), crop="center"), r"another crop \(pad 2, now center 2\)"),
    ):
        with pytest.raises(FlexIPError, match=message):
            check_cache(task.folder, wanted)
    make_caches(replace(task, size=64, clip=None, dino=None))
    new = check_cache(task.folder, latents_manifest(vae, 64))
    assert new != key and set(frames_of(task.folder)[0].caches) >= {key, new}


def test_damaged_manifests_and_another_dtype_are_refused(task: CacheTask) -> None:
    task = replace(task, clip=None, dino=None)
    make_caches(task)
    with pytest.raises(FlexIPError, match="was begun in float32; go on with --dtype float32, or delete it"):
        make_caches(replace(task, dtype="bfloat16"))
    folder = next((task.folder / "caches").iterdir())
    renamed = folder.rename(folder.with_name("latents-000000000000"))
    with pytest.raises(FlexIPError, match="does not belong to a folder of this name"):
        list_caches(task.folder)
    (renamed / "manifest.json").write_text("{}")
    with pytest.raises(FlexIPError, match="cannot be read"):
        list_caches(task.folder)


def test_mistakes_get_one_sentence(task: CacheTask, tmp_path: Path, capsys) -> None:
    for arguments, message in (
        ([], "nothing to cache; give --vae FOLDER"),
        (["--vae", str(tmp_path)], "there is no VAE in .*no config.json"),
        (["--vae", task.clip], "is a file, which has no configs; name the folder vae"),
        (["--vae", str(Path(task.vae) / "unet")], "cannot be loaded"),
        (["--vae", task.vae, "--size", "100"], "the size is 100 px; expected a multiple of 8"),
        (["--clip", task.dino], "is an encoder of the family dinov2"),
        (["--vae", task.vae, "--device", "warp"], "the device warp cannot be used"),
        (["--vae", task.vae, "--threads", "0"], "must be at least 1"),
    ):
        assert main(["data", "cache", str(task.folder), *arguments]) == 2, arguments
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and re.search(message, error), error
    assert main(["data", "cache", str(tmp_path / "none"), "--vae", task.vae]) == 2
    assert "is no data folder" in capsys.readouterr().err
    assert isinstance(Manifest("clip", "a", size=1, crop="pad", version=1).key, str)
