"""What a training leaves: an adapter file, a card, a log, a calibrated dial; and where it can begin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.files.adapter_file import build_adapter, load_adapter_file
from flexip_model.files.ip_adapter import convert_ip_adapter, ip_adapter_order
from flexip_model.train.calibrate import GATES, calibration_curve
from flexip_model.train.shared import state
from flexip_model.train.trainer import Trainer

from ..support.ip_adapter_files import plus_weights, save
from ..support.paths import ROOT
from ..support.train_rig import config, pack, tensors, train


def test_the_run_ends_with_a_file_for_the_nodes_a_card_and_a_log(data: Path, tmp_path: Path) -> None:
    trainer = train(data, tmp_path, stages=[{"steps": 2}], preview_every=2, preview_steps=2, title="Mine")
    path = trainer.export()
    info, held = load_adapter_file(path)
    build_adapter(info, held)
    assert (info.crop, info.white) == ("center", 0.5) and "crop center; 50% of those with a mask" in (
        path.with_suffix(".md").read_text()
    )
    assert info.trained and info.training["steps"] == 2 and info.training["data"][0]["license"] == "CC0"
    assert info.encoders["clip"]["hash"] == trainer.frozen.clip.weights_hash
    ema = state.load(tmp_path / "checkpoints", 2).parts["ema"]
    assert all(torch.equal(held[key], ema[key].half()) for key in held)
    card = path.with_suffix(".md").read_text()
    assert str(ROOT) not in card + json.dumps(info.metadata) and "| Base | `demo` |" in card
    # Whose license it is, only the user can say: the config `demo` says nothing.
    assert info.metadata["modelspec.title"] == "Mine" and info.metadata["modelspec.license"] == "not stated"
    assert "| License of the weights | not stated" in card and card.startswith("---\nlicense: unknown\n---")
    assert "# Mine" in card and "| drawn | 12 | image, video | CC0 |" in card and "α 0.9, β 0.9" in card
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2]
    assert {"loss/image", "loss/variant", "gradient/preservation", "gradient/personalization"} <= log[0].keys()
    assert next((tmp_path / "logs").glob("events.*")).stat().st_size > 0
    assert (tmp_path / "previews" / "step-0000002.png").is_file()


def test_the_dial_spreads_what_changes_over_all_of_it(data: Path, tmp_path: Path) -> None:
    uneven = [[10.0] * 7 + [1.0] * 21, [20.0] * 7 + [2.0] * 21, [0.0] * 28]
    dial = calibration_curve(uneven)
    way = np.concatenate([[0], np.cumsum(uneven[0])])
    picture, gate = np.diff(np.interp(dial, GATES, way)) / way[-1], np.diff(dial)
    assert dial[0] == 0 and dial[-1] == 1
    assert np.abs((picture + gate) / 2 - 1 / 20).max() < 0.001  # so neither is ever more than twice the average
    with pytest.raises(FlexIPError, match="no picture changes"):
        calibration_curve([[0.0] * 28])
    # The dial of a real adapter, by command, goes into the file and nothing else changes.
    run = tmp_path / "run"
    train(data, run, stages=[{"steps": 1}], lr=3e-2, preview_steps=1, guidance=9.0, dial={"steps": 2, "guidance": 4.0})
    own = ["--set", "title=Even", "--set", "license=MIT", "--set", "dial.guidance=6"]
    for name, more in (("plain", []), ("even", ["--calibrate", "2"]), ("other", ["--calibrate", "2", *own])):
        assert main(["export", str(run), str(tmp_path / f"{name}.safetensors"), *more]) == 0
    files = [load_adapter_file(tmp_path / f"{name}.safetensors") for name in ("plain", "even", "other")]
    (plain, held), (even, also), (other, _) = files
    # It was drawn as the dial's own settings say, and the file tells how.
    assert "dial" not in plain.training and even.training["dial"] == {"subjects": 2, "steps": 2, "guidance": 4.0}
    assert other.training["dial"]["guidance"] == 6 and other.config.dial != even.config.dial
    assert other.metadata["modelspec.title"] == "Even" and other.metadata["modelspec.license"] == "MIT"
    assert "measured on 2 subjects with 2 steps and guidance 4.0" in (tmp_path / "even.md").read_text()
    assert main(["export", str(run), "--set", "lr=1"]) == 2
    assert all(torch.equal(held[key], also[key]) for key in held)
    assert plain.config.dial == () and len(even.config.dial) == 21 and even.config.dial != tuple(np.linspace(0, 1, 21))
    assert "calibrated: γ 0, 0.25" in (tmp_path / "even.md").read_text()
    # It was measured on what was trained, so what is trained further begins without one.
    assert Trainer(config(data, tmp_path / "more", start=str(tmp_path / "even.safetensors"))).adapter.config.dial == ()
    with pytest.raises(FlexIPError, match="no field dial"):
        config(data, tmp_path / "more", adapter={"dial": [0, 1]})
    assert main(["export", str(run), "--calibrate", "0"]) == 2


def test_any_checkpoint_can_be_exported_by_command(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", stages=[{"steps": 2}], save_every=1)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "one.safetensors"), "--step", "1"]) == 0
    assert load_adapter_file(tmp_path / "one.safetensors")[0].training["steps"] == 1
    assert main(["export", str(tmp_path / "run"), "--step", "9"]) == 2
    assert main(["export", str(tmp_path)]) == 2


def test_an_ip_adapter_plus_file_gives_resampler_queries_and_the_preservation_branch(data, tmp_path) -> None:
    unet = json.loads((ROOT / "models" / "demo" / "unet" / "config.json").read_text())
    layers = tuple(unet["block_out_channels"][site.level] for site in ip_adapter_order())
    weights = plus_weights(width=64, tokens=unet["cross_attention_dim"], layers=layers, hidden=96)
    source = save(tmp_path / "ip-adapter-plus_sd15.safetensors", weights)
    plus, theirs, _ = convert_ip_adapter(source)
    sizes = {k: getattr(plus, k) for k in ("width", "depth", "heads", "head_width", "feed_forward", "queries")}
    trainer = Trainer(config(data, tmp_path / "run", adapter=sizes, start=str(source)))
    ours = trainer.adapter.state_dict()
    shared = [key for key in theirs if not key.startswith("project_retrieval")]
    assert len(shared) > 40
    assert all(torch.equal(ours[key], theirs[key].float()) for key in shared)
    assert trainer.adapter.config.kind == "flexip"
    with pytest.raises(FlexIPError, match="cannot be the start"):
        Trainer(config(data, tmp_path / "run", adapter={**sizes, "queries": sizes["queries"] + 1}, start=str(source)))
    other = tmp_path / "other.safetensors"
    save_file({"lora_a": torch.zeros(2)}, other)
    with pytest.raises(FlexIPError, match="LoRA"):
        Trainer(config(data, tmp_path / "run", start=str(other)))


def test_a_folder_in_object_storage_trains_as_a_local_one(tmp_path: Path, monkeypatch) -> None:
    from flexip_model.__main__ import main
    from flexip_model.data.format import remote

    monkeypatch.setattr(remote, "MIRRORS", tmp_path / "mirrors")
    data = pack(tmp_path / "data")
    demo = ROOT / "models" / "demo"
    assert main(["data", "cache", str(data), "--vae", str(demo), "--size", "64"]) == 0
    # The same file-system interface as s3:// and gs://, over a local folder.
    far = f"file://{data}"
    for place, output in ((str(data), "near"), (far, "far")):
        train(data, tmp_path / output, data=[place], stages=[{"steps": 2}], workers=1)
    a, b = tensors(tmp_path / "near", 2), tensors(tmp_path / "far", 2)
    assert all(torch.equal(a[key], b[key]) for key in a)
    mirrored = {p.relative_to(remote.Remote(far).mirror).parts[0] for p in remote.Remote(far).mirror.rglob("*.*")}
    assert mirrored == {"flexip-data.json", "index", "caches"}
    with pytest.raises(FlexIPError, match="cannot be listed|no data folder"):
        train(data, tmp_path / "none", data=[f"file://{tmp_path}/nowhere"])
