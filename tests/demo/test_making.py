"""The small model is trained in legs at a miniature size, travels, comes back, and is written as it ships."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flexip_model.common.errors import FlexIPError
from flexip_model.demo.evaluation.rows import digest_of
from flexip_model.demo.evaluation.shipped import Shipped, noises
from flexip_model.demo.making import travel
from flexip_model.demo.making.finished import (
    NETWORKS,
    TEXT,
    TOKENIZER,
    export_model,
    is_done,
    take_exported,
    weights_of,
)
from flexip_model.demo.making.legs import Legs
from flexip_model.demo.making.plan import Plan, plan_of
from flexip_model.demo.making.run import RECORD, Run
from flexip_model.demo.making.stepper import Pace, Stepper, parameters
from flexip_model.demo.stages.kinds import kind_and_seed
from flexip_model.demo.workshop import Workshop
from flexip_model.files.adapter_file import read_info
from flexip_model.files.safefile import load_tensors, read_header
from flexip_model.images.preprocess import CLIP_MEAN, CLIP_STD, normalize

from ..support.demo_work import WANTED, make_tiny, make_work, tiny_plan
from ..support.paths import ROOT
from ..support.paths import SHIPPED as DEMO


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: None) -> Path:
    return make_work(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    """Trained in three legs, of which the second ended in the middle of a stage."""
    assert Legs(work, tiny_plan(), processes=0).go("vae")
    second = Legs(work, tiny_plan(clip={"steps": 10**6}), processes=0)
    second.deadline = time.monotonic() + 1
    assert not second.go("clip")
    turns = json.loads((work / "clip" / RECORD).read_text())["turns"]
    assert turns > 0
    written = weights_of(work, "vae").stat().st_mtime_ns
    assert Workshop(work, work, tiny_plan(clip={"steps": turns + 1})).train(processes=0, returns=work / "returns")
    assert json.loads((work / "clip" / RECORD).read_text())["turns"] == turns + 1
    assert weights_of(work, "vae").stat().st_mtime_ns == written
    return work


def test_legs_train_all_stages_and_the_exported_folder_draws(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path / "out")
    info = read_info(tmp_path / "out" / "flexip_demo.safetensors")
    header = read_header(tmp_path / "out" / "flexip_demo.safetensors")
    assert info.trained and header.metadata["modelspec.title"] == "FlexIP demo adapter"
    steps = info.training["steps"]
    assert set(steps) == {"names", *NETWORKS, "adapter"} and steps["base"] == {"steps": 3, "batch": 2}
    assert any(line.endswith("(CC-BY-4.0)") for line in info.training["data"])
    assert not info.config.dial or (info.config.dial[0], info.config.dial[-1]) == (0, 1)
    model = Shipped(tmp_path / "out", torch.device("cpu"))
    pictures = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    for name in WANTED:
        told, adapter = model.load(trained / "adapters" / f"{name}.safetensors")
        assert told.training["adapter"] == {"steps": 1, "batch": 2} and told.training["name"] == name
        drawn = model.draw(["a dog"], noises(1, 0), model.references(pictures, adapter), [0], [1.0])
        assert drawn.shape == (1, 3, 128, 128)


def test_finished_networks_hold_what_ships(trained: Path) -> None:
    for stage in NETWORKS:
        assert {value.dtype for value in load_tensors(weights_of(trained, stage)).values()} == {torch.float16}


def test_adapters_that_are_asked_for_later_are_trained_beside_the_same_base(trained: Path, monkeypatch) -> None:
    """A processor goes on with the targets that it encoded before."""
    before = {p.name: p.read_bytes() for p in (trained / "adapters").glob("*.safetensors")}
    for drawing in ("_drawn", "_ask"):
        monkeypatch.delattr(Legs, drawing)
    assert Legs(trained, tiny_plan(wanted=["flexip-seed1", "ip-adapter-seed2"]), processes=0).go()
    after = {p.name: p.read_bytes() for p in (trained / "adapters").glob("*.safetensors")}
    assert set(after) - set(before) == {"ip-adapter-seed2.safetensors"}
    assert all(after[name] == value for name, value in before.items())


def test_what_comes_back_is_small_and_goes_on_elsewhere(trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(travel, "PART", 4 * travel.MIB)
    returns = tmp_path / "returns"
    assert travel.write_returns(trained, returns, WANTED) == []
    sizes = [path.stat().st_size for path in returns.iterdir()]
    assert max(sizes) <= 4 * travel.MIB and sum(sizes) <= travel.MOST_RETURNED and len(sizes) > 10
    travel.take_returned(returns, tmp_path / "work")
    for stage in set(NETWORKS) - {"base"}:  # what went on from the base stands for it
        assert weights_of(tmp_path / "work", stage).read_bytes() == weights_of(trained, stage).read_bytes()
    assert not weights_of(tmp_path / "work", "base").exists() and is_done(tmp_path / "work", "base")
    for name in (TOKENIZER, TEXT):
        shutil.copytree(trained / name, tmp_path / "work" / name)
    export_model(trained, tmp_path / "one")
    export_model(tmp_path / "work", tmp_path / "other")
    assert digest_of(tmp_path / "one") == digest_of(tmp_path / "other")
    assert not list((tmp_path / "work").rglob("states-*"))
    part = next(path for path in returns.iterdir() if "places--weights" in path.name)
    part.write_bytes(b"x" + part.read_bytes()[1:])
    with pytest.raises(FlexIPError, match="places/weights.safetensors in .* is damaged"):
        travel.take_returned(returns, tmp_path / "damaged")
    part.unlink()
    with pytest.raises(FlexIPError, match="copy the whole folder back"):
        travel.take_returned(returns, tmp_path / "damaged")
    with pytest.raises(FlexIPError, match=r"has no returns.json"):
        travel.take_returned(tmp_path, tmp_path / "other")


def test_training_goes_on_from_an_exported_folder(trained: Path, tmp_path: Path) -> None:
    """What ships is all that the base and the encoders need; only `tokens`, `keys` and adapters are made anew."""
    export_model(trained, tmp_path / "out")
    work = tmp_path / "work"
    with pytest.raises(FlexIPError, match="expected a folder that `demo-model export` wrote"):
        take_exported(trained, work)
    take_exported(tmp_path / "out", work)
    made_anew = {"tokens", "keys"}
    assert {stage for stage in NETWORKS if not is_done(work, stage)} == made_anew
    for stage in made_anew:
        shutil.copytree(trained / stage, work / stage)
    shutil.copytree(trained / "adapters", work / "adapters")
    kept = {stage: weights_of(work, stage).stat().st_mtime_ns for stage in ("vae", "places")}
    take_exported(tmp_path / "out", work)
    assert kept == {stage: weights_of(work, stage).stat().st_mtime_ns for stage in kept}
    export_model(work, tmp_path / "again")
    assert digest_of(tmp_path / "again") == digest_of(tmp_path / "out")
    files = [read_info(tmp_path / name / "flexip_demo.safetensors") for name in ("out", "again")]
    assert files[0].training == files[1].training


def test_what_has_no_room_is_told_and_the_networks_come_first(trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(travel, "MOST_RETURNED", 36 * travel.MIB)
    left_out = travel.write_returns(trained, tmp_path, WANTED)
    assert "adapters/flexip-no_s-seed1.safetensors" in left_out and "adapters/flexip-seed1.safetensors" not in left_out
    listed = json.loads((tmp_path / travel.LIST).read_text())
    assert {f"{stage}/weights.safetensors" for stage in NETWORKS if stage != "base"} <= set(listed)


def test_a_machine_trains_from_what_was_brought_alone(work: Path, tmp_path: Path, monkeypatch) -> None:
    """Nothing of the work folder, no network, no renderer of drawings."""
    judge = tmp_path / "judge.pth"
    judge.write_bytes(b"judge")
    size = travel.bring(work, tmp_path / "brought", judge)
    assert size < 10 * travel.MIB and (tmp_path / "brought" / "judge.pth").exists()
    plan = '{"vae": {"steps": 1, "batch": 2}, "targets": 8}'
    code = (
        "import sys; sys.modules['resvg_py'] = None\n"
        "import socket; socket.socket.connect = None\n"
        "import pytest\n"
        "from tests.support.demo_work import make_tiny\n"
        "make_tiny(pytest.MonkeyPatch())\n"
        "from flexip_model.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["demo-model", "train", "--work", "there", "--bring", "brought", "--until", "vae", "--plan", plan]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--processes", "0", "--returns", "returns"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert weights_of(tmp_path / "there", "vae").exists() and (tmp_path / "returns" / travel.LIST).exists()
    monkeypatch.setattr(travel, "MOST_BROUGHT", 1000)
    with pytest.raises(FlexIPError, match="more than the 0 that may travel"):
        travel.bring(work, tmp_path / "again", judge)


def test_what_is_missing_is_told_with_what_to_do(work: Path, tmp_path: Path) -> None:
    with pytest.raises(FlexIPError, match="run the stage `data` first"):
        Workshop(tmp_path, tmp_path).train(processes=0)
    with pytest.raises(FlexIPError, match="run the stage `data` first"):
        Workshop(tmp_path, tmp_path).heldout()
    with pytest.raises(FlexIPError, match=r"has no store.zip, tokenizer/vocab.json, text_encoder/config.json"):
        Workshop(tmp_path, tmp_path).train(brought=tmp_path, processes=0)
    (tmp_path / "tokenizer").symlink_to(work / "tokenizer")
    (tmp_path / "text_encoder").symlink_to(work / "text_encoder")
    with pytest.raises(FlexIPError, match="run the stage `train` first"):
        export_model(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "expected a JSON object"),
        ('{"bass": {}}', "a plan has no bass; it has names, vae, clip"),
        ('{"base": {"second": 3}}', "expected an object with some of seconds, batch"),
        ('{"base": {"seconds": 0}}', "seconds of base is 0; expected a number above 0"),
        ('{"dino": {"batch": 1}}', "expected at least 2"),
        ('{"targets": 0}', "expected a whole number from 1"),
        ('{"wanted": ["flexip"]}', "there is no adapter flexip; expected KIND-seedN"),
        ('{"wanted": ["flexup-seed1"]}', "one of the kinds flexip, ip-adapter, ip-adapter-plus"),
    ],
)
def test_a_plan_that_cannot_be_is_told(text: str, said: str) -> None:
    with pytest.raises(FlexIPError, match=said):
        plan_of(text)


def test_a_plan_is_changed_in_what_is_named_alone() -> None:
    plan = plan_of('{"base": {"seconds": 9}, "wanted": ["flexip-moved_16-seed4"]}')
    assert (plan.base.seconds, plan.base.batch, plan.vae) == (9, Plan().base.batch, Plan().vae)
    assert kind_and_seed(plan.wanted[0]) == ("flexip-moved_16", 4)
    assert Plan().wanted[0] == "flexip-seed1"
    trained = sum(getattr(Plan(), stage).seconds for stage in ("vae", "clip", "dino", "base", "adapters"))
    assert trained <= 27 * 60 - 300


def _line(work: Path, steps: int, stop_at: int = -1) -> tuple[Run, nn.Linear]:
    torch.manual_seed(3)
    model, inputs = nn.Linear(3, 1), {"x": torch.zeros(4, 3)}

    def loss(i: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (model(i["x"]) - i["x"].sum(1, keepdim=True)).pow(2).mean()}

    def refill(turn: int) -> None:
        inputs["x"].copy_(torch.randn(4, 3))
        if turn == stop_at:
            signal.raise_signal(signal.SIGTERM)

    pace = Pace(inf, 4, steps=steps, warmup=1, decay_from=0.2)
    stepper = Stepper(parameters(model), loss, inputs, pace)  # type: ignore[arg-type]
    return Run("line", work, {"line": stepper}, refill, pace=pace, deadline=inf), model


def test_a_run_that_a_signal_ends_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, one = _line(tmp_path / "whole", 6)
    assert whole.go()
    with pytest.raises(SystemExit) as ended:
        _line(tmp_path / "parts", 6, stop_at=2)[0].go()
    assert ended.value.code == 128 + signal.SIGTERM
    again, two = _line(tmp_path / "parts", 6)
    assert again.turns == 3
    assert again.go() and torch.equal(one.weight, two.weight)
    assert torch.equal(whole.steppers["line"].averaged[0], again.steppers["line"].averaged[0])
    done, _ = _line(tmp_path / "parts", 6)
    assert done.progress == 1


def test_what_is_slowed_learns_at_its_share_of_the_rate_and_goes_on_so() -> None:
    """AdamW's first step is the rate itself, whatever the gradient."""
    named = {name: nn.Parameter(torch.zeros(2)) for name in ("fast", "slow")}
    inputs = {"x": torch.ones(2)}

    def loss(i: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": sum(((w - i["x"]) ** 2).sum() for w in named.values())}  # type: ignore[dict-item]

    pace = Pace(inf, 2, lr=0.1, warmup=1)
    stepper = Stepper(named, loss, inputs, pace, slowed={"slow"}, slow=0.25)  # type: ignore[arg-type]
    stepper.step(0.0)
    assert torch.allclose(named["fast"], torch.tensor(0.1)) and torch.allclose(named["slow"], torch.tensor(0.025))
    kept = stepper.state()
    stepper.step(0.0)
    moved = {name: weight.detach().clone() for name, weight in named.items()}
    again = Stepper(named, loss, inputs, pace, slowed={"slow"}, slow=0.25)  # type: ignore[arg-type]
    again.load(kept, 1)
    again.step(0.0)
    assert all(torch.equal(named[name], weight) for name, weight in moved.items())


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    run, model = _line(tmp_path, 2)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(FlexIPError, match="the loss of line is not a number at step 2"):
        run.go()
    assert not (tmp_path / "line" / RECORD).exists()


def test_constants_of_a_normalization_are_made_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph refuses copies from the CPU; and what inference made first must serve training."""
    pixels = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    with torch.inference_mode():
        normalize(pixels, CLIP_MEAN, CLIP_STD)
    monkeypatch.setattr(torch, "tensor", None)
    seen = normalize(pixels.requires_grad_(), CLIP_MEAN, CLIP_STD)
    seen.sum().backward()
    assert torch.allclose(pixels.grad[0, :, 0, 0], 1 / torch.as_tensor(CLIP_STD, dtype=torch.float64))


def test_the_shipped_vae_may_be_begun_from(work: Path) -> None:
    legs = Legs(work, tiny_plan(), DEMO / "vae", processes=0)
    assert next(legs.networks.vae.parameters()).dtype == torch.float32
