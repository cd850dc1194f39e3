"""`data cache`: the same values as encoding at once, what a kill or a full disk leaves, and stale caches."""

from __future__ import annotations

import copy
import errno
import logging
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.data.cache import makers
from flexip_model.data.cache import manifest as caches
from flexip_model.data.cache.encode import CacheTask, make_caches
from flexip_model.data.cache.makers import load_vae
from flexip_model.data.cache.manifest import (
    CacheReader,
    Manifest,
    cache_file,
    check_cache,
    clip_manifest,
    latents_manifest,
    list_caches,
)
from flexip_model.data.format import Dataset, Frame, NewFrame, NewGroup, ShardWriter
from flexip_model.encoders import load_clip, load_dino
from flexip_model.files.safefile import read_header
from flexip_model.files.tensorfile import TensorFile
from flexip_model.images.crops import region, square
from flexip_model.images.preprocess import keep_patches, normalize, prepare

from ..support.paths import ROOT
from .data_folder import encoded, scene, write_folder

DEMO = ROOT / "models" / "demo"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four groups of 1, 3, 1 and 3 frames in two shards; frames 0 and 4 have a mask, 1 to 3 a box."""
    return write_folder(tmp_path / "data")


@pytest.fixture
def task(data: Path, tiny_folder: Path) -> CacheTask:
    encoders = tiny_folder / "encoders"
    return CacheTask(
        data,
        str(tiny_folder),
        str(encoders / "clip_vision.safetensors"),
        str(encoders / "dinov2.safetensors"),
        size=32,
        batch=2,
        threads=2,
        device="cpu",
    )


def frames_of(folder: Path) -> list[Frame]:
    dataset = Dataset.open(folder)
    return [frame for i in range(len(dataset)) for frame in dataset.group(i).frames]


def values_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name.split('-')[0]} {name}": value.clone()  # load_file maps the file
        for path in sorted((folder / "caches").glob("*/*.safetensors"))
        for name, value in load_file(path).items()
    }


def readers_of(folder: Path) -> dict[str, CacheReader]:
    return {manifest.kind: CacheReader(folder, key) for key, manifest in list_caches(folder).items()}


def near(cached: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    """Equal up to half precision: 1e-3 of the value."""
    return cached is not None and torch.allclose(cached, wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_shipped_models_cache_is_what_encoding_at_once_gives(data: Path) -> None:
    encoders = DEMO / "encoders"
    clip_file, dino_file = encoders / "clip_vision.safetensors", encoders / "dinov2.safetensors"
    make_caches(CacheTask(data, str(DEMO), str(clip_file), str(dino_file), size=128, flips=True, batch=8, device="cpu"))
    dataset, readers = Dataset.open(data), readers_of(data)
    vae, clip, dino = load_vae(DEMO / "vae"), load_clip(clip_file).float(), load_dino(dino_file).float()
    frames, padded = frames_of(data), 0
    for frame, masked, boxed in ((frames[0], True, False), (frames[1], False, True), (frames[5], False, False)):
        assert (frame.mask_bytes is not None, frame.box is not None) == (masked, boxed)
        assert sorted(frame.caches) == sorted(reader.key for reader in readers.values())
        picture = dataset.picture(frame)
        pixels = square(picture, 128, frame.box)[None]
        latents = vae.encode(pixels).latent_dist.mode()[0] * vae.config.scaling_factor
        assert near(readers["latents"].get(frame), latents)
        assert readers["latents"].get(frame, flip=True) is None
        for flip in (False, True):
            for white in (False, True):
                mask = torch.from_numpy(dataset.mask(frame))[None] if white and masked else None
                if white and mask is None:
                    assert readers["clip"].get(frame, white, flip) is readers["dino"].get(frame, white, flip) is None
                    continue
                for kind, encoder in (("clip", clip), ("dino", dino)):
                    shown = prepare(picture, encoder.image_size, mask, "pad")
                    seen = normalize(shown.pixels.flip(-1) if flip else shown.pixels, encoder.mean, encoder.std)
                    wanted = clip(seen).cls if kind == "clip" else dino(seen)
                    assert near(readers[kind].get(frame, white, flip), wanted[0])
                subject = shown.subject.flip(-1) if flip and shown.subject is not None else shown.subject
                wanted, kept = keep_patches(subject, dino.patch), readers["dino"].keep(frame, white, flip)
                assert torch.equal(kept, wanted[0]) if wanted is not None else kept is None
                padded += wanted is not None and not white
    assert padded


def test_latents_keep_the_subject_that_stands_at_the_side() -> None:
    assert region(300, 100) == (100, 0, 100)
    assert region(300, 100, (210, 0, 290, 100)) == (200, 0, 100)
    assert region(300, 100, (120, 0, 160, 100)) == (90, 0, 100)
    assert region(100, 300, (0, 0, 100, 40)) == (0, 0, 100)
    assert region(300, 100, (-500, 0, 20, 100)) == (0, 0, 100)
    for bad in ((5, 5, 5, 9), (float("nan"), 0, 9, 9), (0, 0, 9)):
        with pytest.raises(FlexIPError, match="expected x0 < x1"):
            region(300, 100, bad)
    wide = Image.new("RGB", (300, 100))
    wide.paste((255, 0, 0), (200, 0, 300, 100))
    right = square(wide, 16, (210, 0, 290, 100))
    assert right.shape == (3, 16, 16) and torch.equal(right[:, 8, 8], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(square(wide, 16)[:, 8, 8], torch.tensor([-1.0, -1.0, -1.0]))


def test_a_changed_crop_needs_a_new_version() -> None:
    """If this fails on purpose, raise `crops.VERSION` or `cache.REFERENCE_VERSION`: old caches are then found stale."""
    picture, mask = scene(7, 90, 60)
    cut = square(picture, 16, (50, 10, 80, 50)).double()
    shown = prepare(picture, 28, torch.from_numpy(np.asarray(mask, np.float32) / 255)[None], "pad").pixels.double()
    weights = torch.linspace(0, 1, 3 * 28 * 28, dtype=torch.float64)
    found = [float((cut.flatten() * weights[: cut.numel()]).sum()), float((shown.flatten() * weights).sum())]
    assert (caches.crops.VERSION, caches.REFERENCE_VERSION) == (1, 2)
    assert found == pytest.approx([0.4521, 1102.981], abs=0.01)


def test_two_processes_make_what_one_makes(task: CacheTask, tmp_path: Path) -> None:
    make_caches(task)
    wanted = values_of(task.folder)
    assert len(wanted) == 8 * 3 + 2 * 3  # of two masks: white for CLIP and DINO, a selection of patches
    other = write_folder(tmp_path / "other")
    command = [
        sys.executable,
        "-m",
        "flexip_model",
        "data",
        "cache",
        str(other),
        "--vae",
        task.vae,
        "--clip",
        task.clip,
        "--dino",
        task.dino,
        "--size",
        "32",
        "--batch",
        "2",
        "--device",
        "cpu",
        "--processes",
        "2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = values_of(other)
    assert found.keys() == wanted.keys() and "process 1: 1 of 1 shards" in done.stdout
    assert all(near(found[name].float(), wanted[name].float()) for name in wanted)
    assert all(len(frame.caches) == 3 for frame in frames_of(other))


def test_shards_are_shared_out_under_torchrun_and_the_last_to_finish_writes_the_index(task, monkeypatch) -> None:
    task = replace(task, clip=None, dino=None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        make_caches(task)
        assert {bool(frame.caches) for frame in frames_of(task.folder)} == {rank == 0}
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(FlexIPError, match="0 ≤ RANK < WORLD_SIZE"):
        make_caches(task)


KILLED = """
import os, sys
from pathlib import Path
from flexip_model.data.cache.encode import CacheTask, make_caches
from flexip_model.data.cache.makers import LatentMaker
plain, calls = LatentMaker.encode, []
def encode(self, pixels):
    calls.append(len(pixels))
    if len(calls) == 4:
        os.kill(os.getpid(), 9)
    return plain(self, pixels)
LatentMaker.encode = encode
make_caches(CacheTask(Path(sys.argv[1]), sys.argv[2], size=32, batch=1, threads=2, device="cpu"))
"""


def test_after_kill_9_only_the_batch_in_hand_is_encoded_again(task: CacheTask, tmp_path: Path, monkeypatch) -> None:
    task = replace(task, clip=None, dino=None, batch=1)
    done = subprocess.run([sys.executable, "-c", KILLED, str(task.folder), task.vae], cwd=ROOT, check=False)
    assert done.returncode == -9
    part = next(task.folder.glob("caches/*/*.part"))
    with part.open("ab") as file:
        file.write(b"half a tensor")
    calls = []
    plain = makers.LatentMaker.encode
    monkeypatch.setattr(makers.LatentMaker, "encode", lambda self, pixels: calls.append(1) or plain(self, pixels))
    make_caches(task)
    assert len(calls) == 8 - 3
    found = values_of(task.folder)
    whole = replace(task, folder=write_folder(tmp_path / "whole"))
    make_caches(whole)
    wanted = values_of(whole.folder)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not list(task.folder.glob("caches/*/*.part*"))
    assert all(frame.caches for frame in frames_of(task.folder))
    calls.clear()
    make_caches(task)
    assert not calls


def test_a_damaged_or_foreign_file_is_made_again(task: CacheTask) -> None:
    task = replace(task, clip=None, dino=None)
    make_caches(task)
    wanted, key = values_of(task.folder), frames_of(task.folder)[0].caches[0]
    first, second = (cache_file(task.folder, key, f"drawn-00000{i}.tar") for i in (0, 1))
    first.write_bytes(first.read_bytes()[:-10])
    frame = frames_of(task.folder)[0]
    with pytest.raises(FlexIPError, match="delete it and run `python -m flexip_model data cache` again"):
        CacheReader(task.folder, key).get(frame)
    first.write_bytes(second.read_bytes())
    make_caches(task)
    found = values_of(task.folder)
    assert found.keys() == wanted.keys() and all(near(found[name].float(), wanted[name].float()) for name in wanted)


def test_a_full_disk_is_told_and_what_was_made_is_kept(task: CacheTask, capsys) -> None:
    task = replace(task, clip=None, batch=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        with pytest.raises(FlexIPError, match=re.escape(os.strerror(errno.EFBIG)) + ".*it goes on where it stopped"):
            make_caches(task)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(task.folder.glob("caches/*/*.safetensors"))
    make_caches(task)
    assert all(len(frame.caches) == 2 for frame in frames_of(task.folder))


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path, task: CacheTask, caplog) -> None:
    folder = write_folder(tmp_path / "broken", broken=2)
    writer = ShardWriter(folder, "blank", "CC0")
    picture, mask = scene(3, 60, 60)
    blank = encoded(Image.new("L", mask.size), "PNG")
    writer.add(NewGroup("b", "image", (NewFrame(encoded(picture, "PNG"), 60, 60, 1.0, "0" * 16, blank),)))
    writer.close()
    with caplog.at_level(logging.INFO):
        make_caches(replace(task, folder=folder))
    out = caplog.text
    frames = frames_of(folder)
    assert [bool(frame.caches) for frame in frames] == [frame != frames[3] for frame in frames]
    assert f"{frames[3].frame_id} left out:" in out and "2 frames with complaints" in out
    assert f"{frames[0].frame_id} the subject mask marks nothing" in out and "only as it is" in out
    reader = readers_of(folder)["clip"]
    assert reader.get(frames[0]) is not None and reader.get(frames[0], white=True) is None
    assert reader.get(frames[3]) is None


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


def test_a_reader_serves_workers_and_keeps_few_files_open(task: CacheTask, monkeypatch) -> None:
    make_caches(replace(task, clip=None, dino=None))
    monkeypatch.setattr(caches, "OPEN_FILES", 1)
    reader, frames = readers_of(task.folder)["latents"], frames_of(task.folder)
    alone = [reader.get(frame) for frame in frames]
    assert len({frame.shard for frame in frames}) == 2 and len(reader._files) == 1
    assert reader.get(replace(frames[0], caches=())) is None

    class Both(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(frames)

        def __getitem__(self, index: int) -> torch.Tensor:
            value = reader.get(frames[index])
            assert value is not None
            return value

    for context in ("fork",):
        loader = torch.utils.data.DataLoader(Both(), batch_size=None, num_workers=2, multiprocessing_context=context)
        assert all(torch.equal(a, b) for a, b in zip(loader, alone, strict=True))
    rebuilt = type(reader)(*reader.__reduce__()[1])
    assert torch.equal(rebuilt.get(frames[0]), alone[0])


def test_files_written_piece_by_piece_are_plain_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wanted = {f"frame-{i}": torch.randn(3, i + 1).half() for i in range(40)}
    wanted["keep"] = torch.ones(5, dtype=torch.uint8)
    path = tmp_path / "a.safetensors"
    file = TensorFile(path, wanted, {"flexip.frames": "x"})
    for name, value in wanted.items():
        file.add(name, value)
        if name == "frame-20":
            file.flush()
            with pytest.raises(FlexIPError, match="another process is writing"):
                TensorFile(path, wanted, {"flexip.frames": "x"})
    file.abandon()
    again = TensorFile(path, wanted, {"flexip.frames": "x"})
    assert again.done == {f"frame-{i}" for i in range(21)}
    for name in wanted.keys() - again.done:
        again.add(name, wanted[name])
    again.close()
    found = load_file(path)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert read_header(path).metadata == {"flexip.frames": "x"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    changed = TensorFile(tmp_path / "b.safetensors", ["a"], {"flexip.frames": "1"})
    changed.add("a", torch.zeros(2))
    changed.flush()
    changed.abandon()
    assert not TensorFile(tmp_path / "b.safetensors", ["a"], {"flexip.frames": "2"}).done


def test_mistakes_get_one_sentence(task: CacheTask, tmp_path: Path, capsys) -> None:
    for arguments, message in (
        ([], "nothing to cache; give --vae FOLDER"),
        (["--vae", str(tmp_path)], "there is no VAE in .*no config.json"),
        (["--vae", task.clip], "is a file; expected is a VAE's folder"),
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
