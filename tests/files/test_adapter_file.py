"""The adapter file: round trip, the exact set of keys, and one clear sentence for each wrong file."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexip_model.common.errors import FlexIPError
from flexip_model.files.adapter_file import (
    build_adapter,
    expected_shapes,
    load_adapter_file,
    read_info,
    save_adapter,
    tensors_hash,
)
from flexip_model.files.safefile import MAX_HEADER_BYTES, read_header
from flexip_model.method.config import FlexIPConfig

from ..support.helpers import damaged_headers, tiny_adapter, tiny_features


@pytest.fixture
def saved(tmp_path):
    adapter = tiny_adapter()
    path = tmp_path / "adapter.safetensors"
    save_adapter(
        path, adapter.config, adapter.state_dict(), training={"trained": True, "steps": 7}, dtype=torch.float32
    )
    return path


def rewrite(path, change_tensors=None, **metadata):
    """Save the file anew with changed tensors or metadata, past save_adapter's own checks."""
    tensors, meta = load_file(path), dict(read_header(path).metadata)
    if change_tensors:
        change_tensors(tensors)
    for key, value in metadata.items():
        meta[f"flexip.{key}"] = value
    save_file(tensors, path, metadata=meta)


def test_round_trip_gives_the_same_adapter(saved):
    adapter = tiny_adapter()
    info, tensors = load_adapter_file(saved)
    loaded = build_adapter(info, tensors)
    assert info.config == adapter.config and info.trained and info.training["steps"] == 7
    features = tiny_features(adapter.config)
    assert torch.equal(loaded.preservation(features), adapter.preservation(features))
    assert torch.equal(loaded.gate(torch.tensor([False, True])), adapter.gate(torch.tensor([False, True])))
    assert info.metadata["modelspec.hash_sha256"] == "0x" + tensors_hash(tensors)


def test_the_same_adapter_is_always_the_same_bytes(tmp_path):
    adapter = tiny_adapter()
    written = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        save_adapter(path, adapter.config, adapter.state_dict(), training={"trained": True, "data": ["Ä", "b"]})
        written.add(path.read_bytes())
    assert len(written) == 1 and read_info(path).training["data"] == ["Ä", "b"]


def test_keys_are_a_contract():
    keys = expected_shapes(FlexIPConfig())
    assert len(keys) == 227
    assert keys["down_blocks.0.attentions.0.attn2.preservation.to_k.weight"] == (320, 768)
    assert keys["mid_block.attentions.0.attn2.personalization.to_v.weight"] == (1280, 768)
    assert keys["queries"] == (1, 16, 768)
    heads = {key.split(".")[0] for key in keys}
    assert heads == {
        "queries",
        "project_retrieval",
        "project_cls",
        "project_text",
        "resampler_queries",
        "resampler_cls",
        "resampler_text",
        "down_blocks",
        "mid_block",
        "up_blocks",
    }


def drop(tensors):
    tensors.pop("queries")


def add(tensors):
    tensors["more"] = torch.zeros(1)


def transpose(tensors):
    tensors["project_cls.weight"] = tensors["project_cls.weight"].t().contiguous()


def integers(tensors):
    tensors["queries"] = tensors["queries"].to(torch.int64)


def not_a_number(tensors):
    tensors["queries"][0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "lacks 1 of .* the first is queries"),
        (add, "1 tensors too many, the first is more"),
        (transpose, "project_cls.weight has shape \\[32, 64\\]"),
        (integers, "queries is I64"),
        (not_a_number, "queries holds NaN"),
    ],
)
@pytest.mark.promise(7)
def test_wrong_tensors_are_named(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(FlexIPError, match=message):
        load_adapter_file(saved)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format_version": "2"}, "format version 2, this pack reads version 1"),
        ({"config": "{"}, "config is not JSON"),
        ({"config": json.dumps({"width": 64})}, "lacks"),
        ({"config": json.dumps(asdict(FlexIPConfig()) | {"depth": 10**6})}, "depth is 1000000; expected at most"),
        ({"config": json.dumps(asdict(FlexIPConfig()) | {"width": 10**9})}, "width is 1000000000; expected at most"),
        ({"config": json.dumps(asdict(FlexIPConfig()) | {"alpha": "0.9"})}, "alpha is '0.9'; expected a number"),
        ({"training": "[]"}, "damaged FlexIP header"),
        ({"training": '{"trained": "false"}'}, "trained is 'false'; expected true or false"),
        ({"encoders": "[]"}, "damaged FlexIP header"),
        ({"encoders": '{"clip": {"name": 3}}'}, "names and hashes of the encoders are not text"),
    ],
)
@pytest.mark.promise(7)
def test_wrong_metadata_is_named(saved, metadata, message):
    rewrite(saved, **metadata)
    with pytest.raises(FlexIPError, match=message):
        read_info(saved)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("ip_adapter.1.to_k_ip.weight", "it is an IP-Adapter; .*convert"),
        ("conditioner.embedders.1.model.ln_final.weight", "SDXL"),
        ("model.diffusion_model.input_blocks.0.0.weight", "whole Stable Diffusion checkpoint"),
        ("vision_model.post_layernorm.weight", "image encoder"),
        ("lora_unet_down.weight", "LoRA"),
    ],
)
@pytest.mark.promise(7)
def test_other_kinds_of_file_are_told_by_name(tmp_path, key, message):
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(2)}, path)
    with pytest.raises(FlexIPError, match=message):
        read_info(path)


@pytest.mark.promise(3, 5, 6)
def test_files_that_are_not_safetensors(tmp_path, saved):
    torch.save({"a": torch.zeros(1)}, tmp_path / "renamed.safetensors")
    (tmp_path / "old.bin").write_bytes(b"anything")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(saved.read_bytes()[:-100])
    bomb = tmp_path / "bomb.safetensors"
    with bomb.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)
    for name, message in (
        ("renamed", "pickle"),
        ("empty", "not a whole"),
        ("cut", "cut short"),
        ("bomb", "over the limit"),
    ):
        with pytest.raises(FlexIPError, match=message):
            read_info(tmp_path / f"{name}.safetensors")
    with pytest.raises(FlexIPError, match="pickle"):
        read_info(tmp_path / "old.bin")
    with pytest.raises(FlexIPError, match="there is no file"):
        read_info(tmp_path / "missing.safetensors")


@pytest.mark.promise(5, seed=0)
def test_a_thousand_damaged_headers_give_errors_and_never_crash(saved):
    broken = saved.with_name("broken.safetensors")
    outcomes = {"refused": 0, "read": 0}
    for damaged in damaged_headers(saved.read_bytes(), 1000, 8):
        broken.write_bytes(damaged)
        try:
            load_adapter_file(broken)
            outcomes["read"] += 1
        except FlexIPError as error:
            assert str(broken) in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 500


def test_a_header_length_that_looks_like_a_pickle_magic_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    for padding in range(256):
        save_file({"a": torch.zeros(1)}, path, metadata={"pad": "x" * padding})
        assert read_header(path).tensors["a"].shape == (1,)


def test_saving_is_strict_and_leaves_no_half_file(tmp_path):
    adapter = tiny_adapter()
    state = adapter.state_dict()
    path = tmp_path / "a.safetensors"
    with pytest.raises(FlexIPError, match="must say whether it was trained"):
        save_adapter(path, adapter.config, state, training={})
    state["queries"] = torch.full_like(state["queries"], 1e6)  # overflows fp16
    with pytest.raises(FlexIPError, match="NaN or infinite"):
        save_adapter(path, adapter.config, state, training={"trained": True})
    assert list(tmp_path.iterdir()) == []
