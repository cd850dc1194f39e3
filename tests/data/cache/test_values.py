"""`data cache`: the same values as encoding at once, however many processes make them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flexip_model.common.errors import FlexIPError
from flexip_model.data.cache import manifest as caches
from flexip_model.data.cache.encode import CacheTask, make_caches
from flexip_model.data.cache.makers import load_vae
from flexip_model.data.format import Dataset
from flexip_model.encoders import load_clip, load_dino
from flexip_model.images.crops import fit
from flexip_model.images.preprocess import keep_patches, normalize, prepare

from ...support.paths import ROOT
from ..data_folder import scene, write_folder
from .cached import frames_of, near, readers_of, values_of

DEMO = ROOT / "models" / "demo"


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
        pixels = fit(picture, (128, 128), frame.box)[None]
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


def test_a_changed_crop_needs_a_new_version() -> None:
    """If this fails on purpose, raise `crops.VERSION` or `cache.REFERENCE_VERSION`: old caches are then found stale."""
    picture, mask = scene(7, 90, 60)
    cut = fit(picture, (16, 16), (50, 10, 80, 50)).double()
    shown = prepare(picture, 28, torch.from_numpy(np.asarray(mask, np.float32) / 255)[None], "pad").pixels.double()
    weights = torch.linspace(0, 1, 3 * 28 * 28, dtype=torch.float64)
    found = [float((cut.flatten() * weights[: cut.numel()]).sum()), float((shown.flatten() * weights).sum())]
    assert (caches.crops.VERSION, caches.REFERENCE_VERSION) == (1, {"center": 3, "pad": 2, "subject": 2})
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
