"""`data cache` in trouble: what a kill, a full disk and damaged files leave, and what is done again."""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from flexip_model.common.errors import FlexIPError
from flexip_model.data.cache import makers
from flexip_model.data.cache.encode import CacheTask, make_caches
from flexip_model.data.cache.manifest import CacheReader, cache_file
from flexip_model.data.format import NewFrame, NewGroup, ShardWriter

from ...support.paths import ROOT
from ..data_folder import encoded, scene, write_folder
from .cached import frames_of, near, readers_of, values_of

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
