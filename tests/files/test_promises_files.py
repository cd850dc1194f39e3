"""Files as an attacker, a bad disk or a wrong download would make them."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.encoders import load_clip, load_dino
from flexip_model.files import adapter_file as checkpoint
from flexip_model.files import safefile
from flexip_model.files.ip_adapter import convert_file

from ..support.encoder_files import CLIP_SPEC, save
from ..support.helpers import damaged_headers, tiny_adapter

Loader = Callable[[Path], object]


def loaders(folder: Path) -> dict[str, Loader]:
    """Everything that opens a file of weights."""
    return {
        "adapter": lambda path: checkpoint.load_adapter_file(path),
        "header": lambda path: checkpoint.read_info(path),
        "clip": load_clip,
        "dino": load_dino,
        "convert": lambda path: convert_file(path, folder / "converted.safetensors"),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    adapter = tiny_adapter()
    path = tmp_path / "adapter.safetensors"
    checkpoint.save_adapter(path, adapter.config, adapter.state_dict(), training={"trained": True})
    return path


class Canary:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


@pytest.mark.promise(3)
def test_canaries_in_pickles_never_run(tmp_path: Path, figures) -> None:
    mark, refused, total = tmp_path / "executed", 0, 0
    (tmp_path / "files").mkdir()
    kinds: dict[str, Callable[[Path], object]] = {
        "zip": lambda path: torch.save({"a": Canary(mark)}, path),
        "legacy": lambda path: torch.save({"a": Canary(mark)}, path, _use_new_zipfile_serialization=False),
        **{f"protocol {n}": lambda path, n=n: path.write_bytes(pickle.dumps(Canary(mark), n)) for n in range(6)},
    }
    for kind, write in kinds.items():
        for suffix in ("pt", "pth", "bin", "ckpt", "pkl", "safetensors"):
            path = tmp_path / "files" / f"{kind.replace(' ', '-')}.{suffix}"
            write(path)
            for load in loaders(tmp_path).values():
                total += 1
                try:
                    load(path)
                except FlexIPError as error:
                    refused += str(path) in str(error)
            assert main(["inspect", str(path)]) == 2
    assert not mark.exists()
    assert refused == total
    pickle.loads(pickle.dumps(Canary(mark))).close()
    assert mark.exists(), "the canary itself must work"
    figures.cases(3, refused, total, "pickles refused, 0 executed")


def header(entries: dict, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def corpus(good: bytes) -> dict[str, bytes]:
    """Nineteen ways in which a file is broken."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    end = 8 + struct.unpack("<Q", good[:8])[0]
    return {
        "empty": b"",
        "one byte": b"\x00",
        "length alone": good[:8],
        "cut in the header": good[: end // 2],
        "cut in the data": good[:-7],
        "no data": good[:end],
        "too long": good + b"\x00" * 9,
        "length zero": struct.pack("<Q", 0) + good[8:],
        "length negative": b"\xff" * 8 + good[8:],
        "length of everything": struct.pack("<Q", len(good)) + good[8:],
        "zeros": bytes(len(good)),
        "text": b"<!DOCTYPE html><html>404</html>" * 20,
        "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "header no object": header([1, 2]),  # type: ignore[arg-type]
        "header not utf-8": struct.pack("<Q", 8) + b'{"\xff\xfe":1}',
        "nested deeply": struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995,
        "offsets backwards": header({"a": entry | {"data_offsets": [4, 0]}}, bytes(4)),
        "overlap": header({"a": entry, "b": entry}, bytes(4)),
        "shape of billions": header({"a": entry | {"shape": [2**40, 2**40]}}, bytes(4)),
    }


@pytest.mark.promise(5)
def test_nineteen_broken_files_give_one_sentence_with_their_path(saved: Path, tmp_path: Path, figures) -> None:
    files, crashes, slowest = corpus(saved.read_bytes()), [], 0.0
    assert len(files) == 19
    path = tmp_path / "broken.safetensors"
    for name, content in files.items():
        path.write_bytes(content)
        for kind, load in {**loaders(tmp_path), "tensors": safefile.load_tensors}.items():
            began = time.monotonic()
            try:
                load(path)
                crashes.append(f"{kind} read {name}")
            except FlexIPError as error:
                if str(path) not in str(error) or "\n" in str(error).strip():
                    crashes.append(f"{kind}, {name}: {error}")
            except Exception as error:
                crashes.append(f"{kind}, {name}: {error!r}")
            slowest = max(slowest, time.monotonic() - began)
    assert crashes == []
    assert slowest < 5
    figures.cases(5, len(files), len(files), "broken files")
    figures.worst(5, slowest, "slowest", " s")


@pytest.mark.promise(5, seed=0)
def test_mutated_files_give_a_sentence_or_load(saved: Path, clip_models, tmp_path: Path, figures) -> None:
    encoder = save(tmp_path / "encoder.safetensors", clip_models[0].state_dict(), CLIP_SPEC)
    path, bad, slowest = tmp_path / "mutated.safetensors", [], 0.0
    count = figures.count(1_500, 100_000)
    sets: list[tuple[bytes, int, Loader]] = [
        (saved.read_bytes(), 8, lambda file: checkpoint.load_adapter_file(file)),
        (encoder.read_bytes(), 4, load_clip),
    ]
    shares = (count * 9 // 10, count - count * 9 // 10)
    for (good, most, load), share in zip(sets, shares, strict=True):
        for data in damaged_headers(good, share, most):
            path.write_bytes(data)
            began = time.monotonic()
            try:
                load(path)
            except FlexIPError as error:
                if str(path) not in str(error):
                    bad.append(str(error))
            except Exception as error:
                bad.append(repr(error))
            slowest = max(slowest, time.monotonic() - began)
    assert bad == []
    assert slowest < 10
    figures.cases(5, count, count, "mutations")
    figures.worst(5, slowest, "slowest", " s")


@pytest.mark.promise(5)
def test_numbers_without_end_are_damage(saved: Path, clip_models, tmp_path: Path) -> None:
    """JSON has numbers that no whole number holds."""
    encoder = save(tmp_path / "encoder.safetensors", clip_models[0].state_dict(), CLIP_SPEC)
    path = tmp_path / "endless.safetensors"
    for good, load, old in (
        (saved, checkpoint.load_adapter_file, b'"shape":['),
        (saved, checkpoint.load_adapter_file, b'"data_offsets":[0,'),
        (encoder, load_clip, b'image_size\\": '),
    ):
        content = good.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        assert old in content[8 : 8 + length]
        changed = content[8 : 8 + length].replace(old, old + b"1e999" + (b"" if b"size" in old else b","), 1)
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
        with pytest.raises(FlexIPError, match="damaged") as found:
            load(path)
        assert str(path) in str(found.value)


@pytest.mark.promise(6)
@pytest.mark.parametrize("kind", ["99 MB", "at the limit, flat", "at the limit, one string"])
def test_a_header_bomb_is_bounded(tmp_path: Path, kind: str, figures) -> None:
    path, limit = tmp_path / "bomb.safetensors", safefile.MAX_HEADER_BYTES
    if kind == "99 MB":
        path.write_bytes(struct.pack("<Q", 99_000_000) + b'{"a": "')
        os.truncate(path, 99_000_100)
    else:
        flat = b"{" + b",".join(b'"%x":0' % n for n in range(limit // 10)) if "flat" in kind else b'{"a":"'
        path.write_bytes(struct.pack("<Q", limit) + flat[:limit].ljust(limit, b"x"))
    loads: list[Loader] = [lambda file: checkpoint.load_adapter_file(file), load_clip, load_dino]
    for load in loads:
        began = time.monotonic()
        with pytest.raises(FlexIPError):
            load(path)
        figures.worst(6, time.monotonic() - began, f"time ({kind})", " s")
        assert time.monotonic() - began < 30
    tracemalloc.start()  # which makes it several times slower
    try:
        with pytest.raises(FlexIPError):
            loads[0](path)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    figures.worst(6, peak, f"peak memory ({kind})", " MB")
    assert peak <= (1 if kind == "99 MB" else 600)


def change(path: Path, name: str) -> None:
    """Turn a good adapter file into one that is whole and wrong."""
    tensors, metadata = load_file(path), dict(safefile.read_header(path).metadata)
    key = "project_cls.weight"
    match name:
        case "NaN":
            tensors[key][0, 0] = torch.nan
        case "infinite":
            tensors[key][0, 0] = torch.inf
        case "integers":
            tensors[key] = tensors[key].to(torch.int32)
        case "no tensors":
            tensors = {}
        case "missing":
            del tensors[key]
        case "extra":
            tensors["another"] = torch.zeros(1)
        case "transposed":
            tensors[key] = tensors[key].T.contiguous()
        case "SDXL":
            tensors, metadata = {"conditioner.embedders.1.model.ln_final.weight": torch.zeros(1)}, {}
        case "foreign adapter":
            tensors, metadata = {"ip_adapter.1.to_k_ip.weight": torch.zeros(1)}, {}
        case "later version":
            metadata["flexip.format_version"] = "9"
    save_file(tensors, path, metadata=metadata)


WRONG = (
    "NaN",
    "infinite",
    "integers",
    "no tensors",
    "missing",
    "extra",
    "transposed",
    "SDXL",
    "foreign adapter",
    "later version",
)


@pytest.mark.promise(7)
def test_whole_files_with_wrong_content_are_refused_by_what_is_wrong(saved: Path, figures) -> None:
    good, found, slowest, accepted = saved.read_bytes(), {}, 0.0, []
    for name in WRONG:
        saved.write_bytes(good)
        change(saved, name)
        began = time.monotonic()
        try:
            checkpoint.load_adapter_file(saved)
            accepted.append(name)
        except FlexIPError as error:
            found[name] = str(error)
        slowest = max(slowest, time.monotonic() - began)
    assert accepted == []
    # NaN and infinite share their sentence.
    assert len(set(found.values())) == len(WRONG) - 1
    assert slowest < 1
    figures.cases(7, len(found), len(WRONG), "wrong files")
    figures.worst(7, slowest, "slowest", " s")


def payloads(secret: Path) -> list[str]:
    """Thirty names that try to leave a folder."""
    name = secret.name
    up = [
        "../",
        "..\\",
        "../../",
        "../../../",
        "..//..//",
        "./../",
        "x/../../",
        "....//",
        "..%2f",
        "%2e%2e/",
        "..%252f",
        "..\u2215",
        "..\uff0f",
        "\uff0e\uff0e/",
        ".\x00./",
        "../\x00",
    ]
    whole = [
        str(secret),
        f"//{secret}",
        f"file://{secret}",
        f"\\\\?\\{secret}",
        f"C:\\{name}",
        f"/proc/self/root{secret}",
        f"~/{name}",
        f"~root/{name}",
        f"$HOME/{name}",
        f"`cat {secret}`",
        f"; cat {secret}",
        f"| cat {secret}",
        f"{secret}\x00.safetensors",
        f"{name}\n../{name}",
    ]
    return [*(f"{before}{name}" for before in up), *whole]


class Opened:
    """Which files this process opens while it is on; an audit hook stays for good, so there is one."""

    paths: list[str] | None = None
    hooked = False

    @classmethod
    def told(cls, event: str, args: tuple) -> None:
        if cls.paths is not None and event == "open" and isinstance(args[0], (str, bytes)):
            cls.paths.append(os.fsdecode(args[0]))

    def __enter__(self) -> list[str]:
        if not Opened.hooked:
            sys.addaudithook(Opened.told)
            Opened.hooked = True
        Opened.paths = []
        return Opened.paths

    def __exit__(self, *_: object) -> None:
        Opened.paths = None


@pytest.mark.promise(4)
def test_thirty_names_at_every_text_input_open_no_file_outside(nodes, comfy_base: Path, figures) -> None:
    secret = comfy_base / "secret.safetensors"
    save_file({"a": torch.zeros(1)}, secret)
    (comfy_base / "models" / "flexip").mkdir(parents=True, exist_ok=True)
    names, escapes, tried = payloads(secret), [], 0
    assert len(names) == 30
    files = {
        "FlexIPLoadAdapter": lambda name: (name,),
        "FlexIPLoadEncoders": lambda name: (name, name),
        "FlexIPLoadDemo": lambda name: (name,),
        "FlexIPExampleImage": lambda name: (name,),
    }
    texts = {
        "curve": lambda name: nodes["FlexIPApply"].execute(None, None, 0.5, 1.0, 0.0, 1.0, curve=name),
        "layers": lambda name: nodes["FlexIPApply"].execute(None, None, 0.5, 1.0, 0.0, 1.0, layers=name),
        "gammas": lambda name: nodes["FlexIPGammaSweep"].execute(None, None, {}, name),
        "title": lambda name: nodes["FlexIPSweepGrid"].execute(torch.zeros(1, 8, 8, 3), [0.5], None, name),
    }
    with Opened() as opened:
        for name in names:
            for kind, given in files.items():
                tried += 2
                if nodes[kind].validate_inputs(*given(name)) is True:
                    escapes.append(f"{kind} takes {name!r}")
                try:
                    nodes[kind].execute(*given(name))
                    escapes.append(f"{kind} opens {name!r}")
                except Exception:  # the host raises its own on a name that no file can have
                    continue
            for act in texts.values():
                tried += 1
                try:
                    act(name)
                except (FlexIPError, ValueError, AttributeError):
                    continue
        escapes += [path for path in opened if secret.name in path]
    secret.unlink()
    assert escapes == []
    figures.cases(4, tried, tried, "inputs")


@pytest.mark.promise(4)
def test_commands_write_where_they_are_told_and_nowhere_else(saved: Path, tmp_path: Path, capsys, figures) -> None:
    before = sorted(tmp_path.rglob("*"))
    names = payloads(tmp_path / "gone" / "secret.safetensors")
    for name in names:
        name = name.replace("\x00", "")
        assert main(["inspect", name]) == 2
        assert main(["convert", str(saved), str(tmp_path / "no" / "such" / Path(name).name)]) == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert len(capsys.readouterr().err.splitlines()) >= 2 * len(names)
    figures.cases(4, 2 * len(names), 2 * len(names), "command lines")
