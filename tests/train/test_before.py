"""What is looked at before a run's first step, and where a run can begin."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.data.format import NewFrame, NewGroup, ShardWriter
from flexip_model.files.adapter_file import load_adapter_file, read_info, save_adapter
from flexip_model.files.ip_adapter import convert_file, convert_ip_adapter, ip_adapter_order
from flexip_model.method.adapters import FlexIPAdapter, create_adapter
from flexip_model.train.configs.options import to_dict
from flexip_model.train.trainer import Trainer

from ..support.ip_adapter_files import plus_weights, save
from ..support.paths import ROOT
from ..support.train_rig import config, pack, png, train

ADAPTER = read_info(ROOT / "models" / "demo" / "flexip_demo.safetensors").config
UNET = json.loads((ROOT / "models" / "demo" / "unet" / "config.json").read_text())


def refused(folder: Path, output: Path, **changes) -> str:
    """The sentences with which a run is refused before it begins."""
    with pytest.raises(FlexIPError) as found:
        Trainer(config(folder, output, **changes))
    return str(found.value)


def test_every_stage_is_looked_at_before_the_first_step(data: Path, tmp_path: Path) -> None:
    said = refused(data, tmp_path / "run", stages=[{"steps": 1}, {"steps": 1, "quality": "high"}])
    assert "stage 2 has no image groups" in said and "stage 2 has no variant groups" in said
    assert "of the quality high: all 7 there were packed as base" in said and "`quality: any`" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_stage_that_is_over_is_not_asked_for_its_data_again(tmp_path: Path) -> None:
    fine, base, run = pack(tmp_path / "fine", quality="high"), pack(tmp_path / "base"), tmp_path / "run"
    stages = [{"steps": 1}, {"steps": 1, "quality": "high"}]
    train(base, run, stages=stages[:1])
    train(fine, run, stages=stages)


def test_groups_that_all_lie_in_another_split_are_named_with_it(tmp_path: Path) -> None:
    data = pack(tmp_path / "data", images=0)
    writer = ShardWriter(data, "held", "CC0", note="drawn for a test")
    writer.add(
        NewGroup("held-0", "image", (NewFrame(png(Image.new("RGB", (8, 8))), 8, 8, 1.0, "0" * 16),), split="val")
    )
    writer.close()
    said = refused(data, tmp_path / "run")
    assert "no image groups" in said and "all 1 lie in the split val" in said and "--val 0" in said


def test_all_that_would_stop_a_run_is_told_at_once(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = refused(
        data,
        tmp_path / "file" / "run",
        base=str(tmp_path),
        clip=str(tmp_path / "clip.safetensors"),
        dino=str(tmp_path / "dino.safetensors"),
        start=str(tmp_path / "start.safetensors"),
        data=[str(data), str(tmp_path / "nowhere")],
    )
    lines = said.splitlines()
    assert lines[0] == "6 things would stop this run:" and len(lines) == 7
    for words in ("output folder", "no data folder", "no file .*clip", "no file .*dino", "no folder unet", "start"):
        assert any(re.search(words, line) for line in lines[1:]), words


def test_too_little_room_on_the_disk_is_told_before_the_first_step(data: Path, tmp_path: Path) -> None:
    said = refused(data, tmp_path, stages=[{"steps": 10**9}], save_every=1, keep=10**9)
    assert "GB free, and this run will write" in said and "smaller keep" in said


def test_a_lost_shard_is_told_before_the_first_step(tmp_path: Path) -> None:
    data = pack(tmp_path / "data")
    lost = sorted((data / "shards").glob("*.tar"))[0]
    lost.rename(tmp_path / "away.tar")
    said = refused(data, tmp_path / "run")
    assert "lacks 1 of the shards" in said and lost.name in said
    Trainer(config(data, tmp_path / "run", bad_share=1.0))


def test_sizes_that_base_and_encoders_decide_cannot_be_set_otherwise(data: Path, tmp_path: Path) -> None:
    said = refused(data, tmp_path, adapter={"clip_width": 5, "width": 32})
    assert "adapter says clip_width 5, and base and encoders have" in said


@pytest.fixture
def adapter_file(tmp_path: Path) -> Path:
    """An adapter beside the small model, of the sizes of the rig but with α 0.8 and depth 2."""
    return adapter_of(tmp_path / "adapter.safetensors")


def adapter_of(path: Path, **changes) -> Path:
    small = {"width": 32, "depth": 2, "heads": 2, "head_width": 16, "queries": 4, "alpha": 0.8, "dial": ()}
    made = replace(ADAPTER, **{**small, **changes})
    torch.manual_seed(3)
    save_adapter(path, made, create_adapter(made).state_dict(), training={"trained": True})
    return path


def test_a_start_of_other_heads_depth_or_kind_is_refused_by_both_numbers(data, tmp_path, adapter_file) -> None:
    for changes, words in (
        ({"heads": 4, "head_width": 8}, "it has heads 2, and the config's adapter says 4"),
        ({"depth": 4}, "it has depth 2, and the config's adapter says 4"),
        ({"queries": 5}, "it has queries 4, and the config's adapter says 5"),
    ):
        said = refused(data, tmp_path / "run", adapter=changes, start=str(adapter_file))
        assert words in said and str(adapter_file) in said
    plain = adapter_of(tmp_path / "plain.safetensors", kind="ip-adapter")
    assert "of the kind ip-adapter; start from an IP-Adapter-Plus" in refused(data, tmp_path, start=str(plain))
    other = adapter_of(tmp_path / "other.safetensors", clip_width=ADAPTER.clip_width + 1)
    assert "it was made for clip_width" in refused(data, tmp_path, adapter={}, start=str(other))
    with pytest.raises(FlexIPError, match="of the kind ip-adapter; a run trains"):
        config(data, tmp_path, adapter={"kind": "ip-adapter"})


def bare(data: Path, output: Path, start: Path, **adapter):
    """A config whose adapter says no more than this."""
    return replace(config(data, output), adapter=adapter, start=str(start))


def test_what_the_config_leaves_open_is_the_starts(data: Path, tmp_path: Path, adapter_file: Path) -> None:
    made = Trainer(bare(data, tmp_path / "run", adapter_file)).adapter
    info, tensors = load_adapter_file(adapter_file)
    assert made.config == info.config
    assert all(torch.equal(made.state_dict()[key], value.float()) for key, value in tensors.items())
    assert Trainer(bare(data, tmp_path / "run", adapter_file, alpha=0.7, depth=2)).adapter.config.alpha == 0.7


def test_a_gate_may_begin_to_learn_and_does_not_forget(data: Path, tmp_path: Path, adapter_file: Path) -> None:
    learning = Trainer(bare(data, tmp_path / "a", adapter_file, learnable_gate=True)).adapter
    assert torch.allclose(learning.gate.alpha_beta(), torch.tensor([0.8, 0.9]), atol=1e-4)
    learned = adapter_of(tmp_path / "learned.safetensors", learnable_gate=True, alpha=0.3)
    assert abs(float(Trainer(bare(data, tmp_path / "a", learned)).adapter.gate.alpha_beta()[0]) - 0.3) < 1e-3
    with pytest.raises(FlexIPError, match="it has learnable_gate True, and the config's adapter says False"):
        Trainer(bare(data, tmp_path / "a", learned, learnable_gate=False))


def test_an_ip_adapter_plus_file_of_other_heads_is_refused_and_an_open_config_takes_its_sizes(data, tmp_path) -> None:
    layers = tuple(UNET["block_out_channels"][site.level] for site in ip_adapter_order())
    weights = plus_weights(width=64, tokens=UNET["cross_attention_dim"], layers=layers, hidden=96)
    source = save(tmp_path / "ip-adapter-plus_sd15.safetensors", weights)
    sizes = convert_ip_adapter(source)[0]
    assert (sizes.heads, sizes.head_width) == (1, 64)
    with pytest.raises(FlexIPError, match="it has heads 1, and the config's adapter says 4"):
        Trainer(bare(data, tmp_path / "run", source, width=64, depth=4, heads=4, head_width=16, queries=16))
    convert_file(source, tmp_path / "converted.safetensors")
    for start in (source, tmp_path / "converted.safetensors"):
        adapter = Trainer(bare(data, tmp_path / "run", start)).adapter
        assert isinstance(adapter, FlexIPAdapter)
        assert (adapter.config.heads, adapter.config.queries, adapter.config.kind) == (1, 16, "flexip")
        assert torch.allclose(adapter.queries, weights["image_proj.latents"].float(), atol=1e-3)


def test_a_dry_run_tells_what_would_be_trained_and_touches_no_run(data: Path, tmp_path: Path, capsys) -> None:
    train(data, tmp_path / "run", stages=[{"steps": 1}])
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    path = tmp_path / "my.yaml"
    stages = [{"steps": 70}, {"steps": 35}]
    path.write_text(json.dumps(to_dict(config(data, tmp_path / "run", stages=stages)), default=list))
    assert main(["train", "--dry-run", str(path)]) == 0
    said = capsys.readouterr().out
    assert "stage 1: 70 steps of 4 samples on 7 image groups, each seen 20 times; 5 variant groups" in said
    assert "stage 2: 35 steps" in said and "samples/s" in said and "all 105 steps: " in said and " GB" in said
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    wrong = ["--set", "clip=no.safetensors", "--set", "dino=none.safetensors"]
    assert main(["train", "--dry-run", str(path), *wrong]) == 2
    assert "2 things would stop this run" in capsys.readouterr().err
