"""The trainer: exact halves, exact resume, checkpoints that survive, and an adapter file at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flexip_model.checkpoint import build_adapter, load_adapter_file
from flexip_model.cli import main
from flexip_model.convert import convert_ip_adapter, ip_adapter_order
from flexip_model.errors import FlexIPError
from flexip_model.gate import spread_gamma
from flexip_model.train import state
from flexip_model.train.calibrate import GATES, dial_of
from flexip_model.train.config import to_dict
from flexip_model.train.configfile import NAMED, from_dict, load_config
from flexip_model.train.order import Batches, Order, Ticket
from flexip_model.train.samples import collate, open_samples
from flexip_model.train.trainer import Trainer

from .ip_adapter_files import plus_weights, save
from .train_rig import config, pack

ROOT = Path(__file__).resolve().parent.parent
KILLS = 200
STOPS = int(os.environ.get("FLEXIP_STOPS", "1"))
"""How often a save is killed and a run stopped; docs/training.md has the figures of 200 and 20."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("data"))


def train(folder: Path, output: Path, **changes) -> Trainer:
    trainer = Trainer(config(folder, output, **changes))
    trainer.run()
    return trainer


def tensors(output: Path, step: int) -> dict[str, torch.Tensor]:
    found = state.load(output / "checkpoints", step)
    return {f"{part}.{key}": value for part, held in found.parts.items() for key, value in held.items()}


# Order

def test_every_device_batch_holds_both_kinds_in_equal_numbers_and_no_group_twice_in_an_epoch() -> None:
    order = Order((6, 4), images=2, batch=4, world=2, seed=3)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for step in range(3):
        for rank in range(2):
            tickets = order.tickets(step, rank)
            assert [t.kind for t in tickets] == [0, 0, 1, 1]
            for ticket in tickets:
                seen[ticket.kind].append(order.group(ticket))
    assert sorted(seen[0][:6]) == list(range(6)) and sorted(seen[0][6:]) == list(range(6))
    assert all(sorted(seen[1][i : i + 4]) == list(range(4)) for i in (0, 4, 8))


def test_devices_share_the_samples_that_one_device_with_the_whole_batch_would_see() -> None:
    alone = Order((50, 50), images=4, batch=8, world=1, seed=0)
    shared = Order((50, 50), images=2, batch=4, world=2, seed=0)
    for step in range(10):
        parts = [*shared.tickets(step, 0), *shared.tickets(step, 1)]
        assert sorted(alone.tickets(step, 0)) == sorted(parts)


def test_a_sampler_that_starts_later_gives_what_the_whole_one_gives_there() -> None:
    order = Order((9, 5), images=1, batch=2, world=1, seed=1)
    assert list(Batches(order, 0, 4, 9)) == list(Batches(order, 0, 0, 9))[4:]


# Config

@pytest.mark.parametrize("name", NAMED)
def test_configs_that_ship_are_whole_and_survive_json(name: str) -> None:
    found = load_config(name)
    assert from_dict(json.loads(json.dumps(to_dict(found)))) == found


def test_the_papers_numbers_are_the_default() -> None:
    paper = load_config("paper")
    assert (paper.size, paper.batch, paper.lr, paper.weight_decay) == (512, 16, 1e-4, 0.01)
    assert [(s.steps, s.quality) for s in paper.stages] == [(100_000, "any"), (40_000, "high")]
    assert (paper.dropout.image, paper.dropout.text, paper.dropout.both) == (0.05, 0.05, 0.05)
    assert paper.min_snr is None and paper.image_share == 0.5 and paper.gamma_spread == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [("batch: 7", "split"), ("lr: fast", "expected a number"), ("learning_rate: 1", "unknown key learning_rate"),
     ("- a", "key: value"), ("a: [", "not YAML"), ("extends: nowhere.yaml", "no config"), ("stages: []", "no stage"),
     ("dropout: {text: 0.95}", "sum of the dropouts"), ("adapter: {depht: 3}", "no field depht")],
)
def test_a_wrong_config_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text if text.startswith(("extends", "-", "a:")) else f"extends: demo\n{text}\n")
    with pytest.raises(FlexIPError, match=words):
        load_config(path)


def test_paths_are_relative_to_the_config_and_a_part_of_a_section_can_be_changed(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("extends: demo\ndata: packed\noutput: here\nreferences: {white: 0.25}\n")
    found = load_config(tmp_path / "my.yaml", {"dropout.text": 0.1})
    assert found.data == (str(tmp_path / "packed"),) and found.output == str(tmp_path / "here")
    assert (found.references.white, found.references.crop, found.dropout.text) == (0.25, "center", 0.1)
    assert Path(found.base).is_dir() and Path(found.clip).is_file()


# Samples

def test_a_sample_depends_on_its_ticket_alone_and_variants_see_another_picture(data: Path, tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    c = config(data, tmp_path, references={"white": 0.0, "flip_variant": 0.0, "crop": "center"})
    frozen = load_frozen(c)
    first, second = (open_samples(c, frozen, 0, 1) for _ in range(2))
    for ticket in (Ticket(0, 3, 0), Ticket(1, 11, 0)):
        a, b = first[ticket], second[ticket]
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
        target = torch.nn.functional.interpolate(a["pixels"][None] / 2 + 0.5, 112, mode="bicubic", antialias=True)[0]
        distance = float((target - a["clip_pixels"]).abs().mean())
        assert distance < 0.02 if ticket.kind == 0 else distance > 0.02
    assert first[Ticket(0, 3, 0)]["steps"] != first[Ticket(0, 4, 0)]["steps"]


def test_dropout_has_three_exclusive_cases_of_the_share_asked_for(data: Path, tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    c = config(data, tmp_path, size=16, dropout={"image": 0.2, "text": 0.2, "both": 0.2})
    samples = open_samples(c, load_frozen(c), 0, 1)
    empty = samples.tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    cases = []
    for number in range(120):
        sample = samples[Ticket(0, number, 0)]
        cases.append((bool(sample["no_image"]), bool(torch.equal(sample["ids"], empty))))
    shares = {case: cases.count(case) / len(cases) for case in set(cases)}
    assert all(abs(shares[case] - 0.2) < 0.12 for case in ((True, False), (False, True), (True, True)))


def test_a_flipped_reference_has_its_mask_flipped_with_it(data: Path, tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    found = []
    for share in (0.0, 1.0):
        c = config(data, tmp_path, references={"white": 1.0, "flip_image": share, "crop": "pad"})
        found.append(open_samples(c, load_frozen(c), 0, 1)[Ticket(0, 1, 0)])
    plain, flipped = found
    assert torch.equal(plain["dino_pixels"].flip(-1), flipped["dino_pixels"])
    assert torch.equal(plain["keep"].unflatten(0, (16, 16)).flip(-1).flatten(), flipped["keep"])
    assert not plain["keep"].all()


# Resume

def test_100_steps_are_50_and_50_over_many_epochs_and_with_workers(data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(data, whole, stages=[{"steps": 100}], workers=0)
    for steps in (50, 100):
        train(data, parts, stages=[{"steps": steps}], workers=4)
    a, b = tensors(whole, 100), tensors(parts, 100)
    assert a.keys() == b.keys() and len(a) > 100
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert not torch.equal(tensors(parts, 50)["weights.queries"], b["weights.queries"])


def test_a_run_goes_through_its_stages_and_resumes_in_the_second(tmp_path: Path) -> None:
    data = pack(tmp_path / "data", quality="base")
    pack(data, 3, 3, quality="high", name="fine")
    stages = [{"steps": 2}, {"steps": 2, "quality": "high"}]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(data, whole, stages=stages)
    for steps in (1, 2):
        train(data, parts, stages=[stages[0], {**stages[1], "steps": steps}])
    a, b = tensors(whole, 4), tensors(parts, 4)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [d["name"] for d in state.load(parts / "checkpoints", 4).info["about"]["data"]] == ["fine"]


def test_a_changed_config_does_not_continue_a_run_in_silence(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, stages=[{"steps": 1}])
    with pytest.raises(FlexIPError, match=r"started with seed 0, the config now says 5"):
        train(data, tmp_path, stages=[{"steps": 2}], seed=5)


# Trouble

def test_a_gradient_that_is_not_finite_never_reaches_the_weights(data: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 3}]))
    plain = trainer.model.forward
    calls = []

    def spoiled(batch):
        calls.append(0)
        errors = plain(batch)
        return errors * float("nan") if len(calls) == 2 else errors

    monkeypatch.setattr(trainer.model, "forward", spoiled)
    trainer.run()
    assert trainer.skipped == 1 and trainer.step == 3
    assert all(torch.isfinite(value).all() for value in tensors(tmp_path, 3).values())


def test_a_run_without_finite_gradients_stops_and_keeps_the_last_good_weights(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flexip_model.train.loop.BAD_STEPS", 3)
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 9}], save_every=1))
    before = {key: value.clone() for key, value in trainer.adapter.state_dict().items()}
    plain = trainer.model.forward
    monkeypatch.setattr(trainer.model, "forward", lambda batch: plain(batch) * float("inf"))
    with pytest.raises(FlexIPError, match="3 steps in a row gave no finite gradient"):
        trainer.run()
    assert all(torch.equal(value, before[key]) for key, value in trainer.adapter.state_dict().items())


def test_unreadable_samples_are_replaced_and_counted_and_too_many_end_the_run(tmp_path: Path) -> None:
    data = pack(tmp_path / "data", broken=1)
    trainer = train(data, tmp_path / "run", stages=[{"steps": 4}], bad_share=1.0)
    samples = open_samples(trainer.config, trainer.frozen, 0, 1)
    drawn = [samples[t]["unreadable"] for step in range(4) for t in samples.order.tickets(step, 0)]
    assert trainer.unreadable == sum(drawn) > 0
    with pytest.raises(FlexIPError, match="could not be read, more than"):
        train(pack(tmp_path / "worse", broken=4), tmp_path / "run2", stages=[{"steps": 30}], bad_share=0.01)


def test_a_side_without_groups_is_named(tmp_path: Path) -> None:
    data = pack(tmp_path / "data", variants=0)
    with pytest.raises(FlexIPError, match=r"no variant groups .* image_share: 1"):
        train(data, tmp_path / "run")
    train(data, tmp_path / "run", image_share=1, stages=[{"steps": 1}])


@pytest.mark.parametrize("harm", ["truncate", "flip a bit", "lose a file", "lose the manifest", "unfinished"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path: Path, harm: str) -> None:
    parts = {"weights": {"w": torch.arange(1000.0)}, "ema": {"w": torch.ones(10)}}
    for step in (1, 2):
        state.save(tmp_path, step, parts, {"seen": step}, keep=3)
    newest = tmp_path / "step-0000002"
    file = newest / "weights.safetensors"
    if harm == "truncate":
        file.write_bytes(file.read_bytes()[:-7])
    elif harm == "flip a bit":
        content = bytearray(file.read_bytes())
        content[-9] ^= 4
        file.write_bytes(content)
    elif harm == "lose a file":
        file.unlink()
    elif harm == "lose the manifest":
        (newest / "manifest.json").unlink()
    else:
        newest.rename(tmp_path / ".saving-0000002")
    found, complaints = state.load_newest(tmp_path)
    assert found is not None and found.step == 1 and found.info == {"seen": 1}
    assert torch.equal(found.parts["weights"]["w"], parts["weights"]["w"])
    assert len(complaints) == (harm != "unfinished") and all("step-0000002" in c for c in complaints)
    state.save(tmp_path, 2, parts, {}, keep=3)
    assert state.load(tmp_path, 2).step == 2


def test_a_checkpoint_of_another_version_is_named_and_kept(tmp_path: Path) -> None:
    folder = state.save(tmp_path, 3, {"weights": {"w": torch.ones(3)}}, {}, keep=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 1}))
    found, complaints = state.load_newest(tmp_path)
    assert found is None and "has checkpoint version 1, this trainer reads 2" in complaints[0]
    assert next(tmp_path.glob("damaged-step-0000003-*")).is_dir()


def test_only_the_newest_checkpoints_stay_and_none_is_pickled(tmp_path: Path) -> None:
    for step in range(1, 6):
        state.save(tmp_path, step, {"weights": {"w": torch.ones(3)}}, {}, keep=2)
    assert state.list_steps(tmp_path) == [4, 5]
    names = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {".safetensors", ".json"}


KILLED = """
import os, sys, torch
from pathlib import Path
from flexip_model.train import state
folder = Path(sys.argv[1])
for _ in sys.stdin:  # a line asks for the next process; torch is imported once for all of them
    child = os.fork()
    if not child:
        step = max(state.list_steps(folder), default=0)
        while True:
            step += 1
            state.save(folder, step, {"weights": {"w": torch.full((300_000,), float(step))}}, {"step": step}, keep=2)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_kill_9_during_saves_never_loses_the_last_good_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    last = 0
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        assert nursery.stdin is not None and nursery.stdout is not None
        for _ in range(KILLS):
            nursery.stdin.write("\n")
            nursery.stdin.flush()
            process = int(nursery.stdout.readline())
            while max(state.list_steps(tmp_path), default=0) <= last:
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 0.05)))
            os.kill(process, signal.SIGKILL)
            assert int(nursery.stdout.readline()) == signal.SIGKILL
            found, complaints = state.load_newest(tmp_path)
            assert found is not None and complaints == [] and found.step > last
            assert (found.parts["weights"]["w"] == found.step).all()
            last = found.step


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from flexip_model.convert import convert_ip_adapter, ip_adapter_order
from flexip_model.errors import FlexIPError
from flexip_model.train import state
folder = Path(sys.argv[1])
parts = {"weights": {"w": torch.zeros(100_000)}}
state.save(folder, 1, parts, {}, keep=2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    state.save(folder, 2, parts, {}, keep=1)
except FlexIPError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes to fill a disk with")
def test_a_full_disk_is_loud_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "step-0000001 and is intact" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001"]
    assert state.load(tmp_path, 1).step == 1


@pytest.mark.parametrize("point", range(STOPS))
def test_sigterm_saves_and_the_same_command_goes_on(data: Path, tmp_path: Path, point: int) -> None:
    path = tmp_path / "my.yaml"
    values = to_dict(config(data, tmp_path / "run", stages=[{"steps": 6}], save_every=1000))
    path.write_text(json.dumps(values, default=list))
    command = [sys.executable, "-m", "flexip_model.train", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {1 + point % 4}/"):
            time.sleep(float(np.random.default_rng(point).uniform(0, 0.4)) * (point > 0))
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait() == 128 + signal.SIGTERM and "goes on from there" in rest
    steps = state.list_steps(tmp_path / "run" / "checkpoints")
    assert len(steps) == 1 and 1 <= steps[0] <= 6
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train(data, tmp_path / "whole", stages=[{"steps": 6}])
    a, b = tensors(tmp_path / "whole", 6), tensors(tmp_path / "run", 6)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_too_little_memory_is_said_in_one_sentence(data: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 3}], save_every=1))
    plain = trainer.model.forward

    def spoiled(batch):
        if trainer.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return plain(batch)

    monkeypatch.setattr(trainer.model, "forward", spoiled)
    with pytest.raises(FlexIPError, match=r"memory ran out at step 2 .* smaller batch"):
        trainer.run()
    assert state.load_newest(tmp_path / "checkpoints")[0].step == 2


def test_gradient_checkpointing_changes_memory_and_not_the_gradients(data: Path, tmp_path: Path) -> None:
    found = []
    for saving in (False, True):
        trainer = Trainer(config(data, tmp_path, gradient_checkpointing=saving))
        samples = open_samples(trainer.config, trainer.frozen, 0, 1)
        trainer.model(collate([samples[t] for t in samples.order.tickets(0, 0)])).mean().backward()
        found.append({name: p.grad for name, p in trainer.adapter.named_parameters()})
    assert trainer.frozen.unet.is_gradient_checkpointing
    plain, saved = found
    assert all(torch.allclose(plain[name], saved[name], atol=1e-6) for name in plain)


def test_gamma_is_spread_over_the_dial_and_own_references_are_met_more_the_higher_it_is(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(data, tmp_path, gamma_spread=1.0))
    samples = open_samples(trainer.config, trainer.frozen, 0, 1)
    tickets = [t for step in range(3) for t in samples.order.tickets(step, 0)]
    batch = collate([samples[t] for t in tickets])
    with torch.no_grad():
        trainer.model(batch)
    met = trainer.model._held[1].condition.gamma.flatten()
    assert len(set(met.tolist())) == len(tickets) and met.min() >= 0 and met.max() <= 1
    drawn, variant = torch.rand(20_000, generator=torch.Generator().manual_seed(0)), torch.arange(20_000) % 2 == 1
    fixed = trainer.adapter.gate(variant)
    gamma = spread_gamma(fixed, variant, drawn, 1.0).flatten()
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        own, other = (low + 0.2) ** 3 - low**3, (1 - low) ** 2 - (0.8 - low) ** 2
        here = (gamma >= low) & (gamma < low + 0.2)
        assert abs(float((~variant[here]).float().mean()) - own / (own + other)) < 0.03
    assert torch.equal(spread_gamma(fixed, variant, drawn, 0.0), fixed)
    half = spread_gamma(fixed, variant, drawn, 0.5).flatten()
    assert half[~variant].min() >= 0.45 and half[variant].max() <= 0.55 and half[~variant].max() <= 0.95


# Devices

def _gradients(data: Path, output: Path, batch: int, *launches: list[str]) -> dict[str, torch.Tensor]:
    """The gradients of one step, after launchers that are started beside each other, as on several machines."""
    output.mkdir()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    script = [str(Path(__file__).parent / "train_gradients.py"), str(data), str(output), str(batch)]
    started = [subprocess.Popen([sys.executable, "-m", *launch, *script], cwd=ROOT, env=env, stderr=subprocess.PIPE,
                                text=True) for launch in launches]
    for process in started:
        complaint = process.communicate(timeout=300)[1]
        assert process.returncode == 0, complaint[-3000:]
    return load_file(output / "gradients.safetensors")


def test_two_processes_and_two_machines_have_the_gradients_of_one_with_the_same_global_batch(
        data: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one = _gradients(data, tmp_path / "one", 8, ["torch.distributed.run", "--standalone", "--nproc_per_node", "1"])
    processes = _gradients(data, tmp_path / "processes", 4,
                           ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"])
    machines = _gradients(data, tmp_path / "machines", 4, *(
        ["torch.distributed.run", "--nnodes", "2", "--node_rank", rank, "--nproc_per_node", "1",
         "--master_addr", "127.0.0.1", "--master_port", str(port)] for rank in "01"))
    largest = max(float(value.abs().max()) for value in one.values())
    for several in (processes, machines):
        assert one.keys() == several.keys()
        worst = max(float((one[key] - several[key]).abs().max()) for key in one)
        assert worst <= 1e-6 * max(1.0, largest) and largest > 1e-4


# What comes out

def test_the_run_ends_with_a_file_for_the_nodes_a_card_and_a_log(data: Path, tmp_path: Path) -> None:
    trainer = train(data, tmp_path, stages=[{"steps": 2}], preview_every=2, preview_steps=2, title="Mine")
    path = trainer.export()
    info, held = load_adapter_file(path)
    build_adapter(info, held)
    assert info.trained and info.training["steps"] == 2 and info.training["data"][0]["license"] == "CC0"
    assert info.encoders["clip"]["hash"] == trainer.frozen.clip.weights_hash
    ema = state.load(tmp_path / "checkpoints", 2).parts["ema"]
    assert all(torch.equal(held[key], ema[key].half()) for key in held)
    card = path.with_suffix(".md").read_text()
    assert str(ROOT) not in card + json.dumps(info.metadata) and "| Base | `demo` |" in card
    assert "# Mine" in card and "| drawn | 12 | image, video | CC0 |" in card and "α 0.9, β 0.9" in card
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2]
    assert {"loss/image", "loss/variant", "gradient/preservation", "gradient/personalization"} <= log[0].keys()
    assert next((tmp_path / "logs").glob("events.*")).stat().st_size > 0
    assert (tmp_path / "previews" / "step-0000002.png").is_file()


def test_the_dial_makes_sweeps_even_that_were_not(data: Path, tmp_path: Path) -> None:
    uneven = [[10.0] * 7 + [1.0] * 21, [20.0] * 7 + [2.0] * 21, [0.0] * 28]
    dial = dial_of(uneven)
    way = np.concatenate([[0], np.cumsum(uneven[0])])
    steps = np.diff(np.interp(dial, GATES, way))
    assert dial[0] == 0 and dial[-1] == 1 and steps.max() < 1.02 * steps.mean()
    with pytest.raises(FlexIPError, match="no picture changes"):
        dial_of([[0.0] * 28])
    # The dial of a real adapter, by command, goes into the file and nothing else changes.
    run = tmp_path / "run"
    train(data, run, stages=[{"steps": 1}], lr=3e-2, preview_steps=2)
    for name, more in (("plain", []), ("even", ["--calibrate", "2"])):
        assert main(["export", str(run), str(tmp_path / f"{name}.safetensors"), *more]) == 0
    (plain, held), (even, also) = (load_adapter_file(tmp_path / f"{n}.safetensors") for n in ("plain", "even"))
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


def test_the_base_and_its_encoders_stay_as_they_are(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 2}]))
    held = {f"{i}.{k}": v.clone() for i, m in enumerate(trainer.frozen._modules()) for k, v in m.state_dict().items()}
    trainer.run()
    after = {f"{i}.{k}": v for i, m in enumerate(trainer.frozen._modules()) for k, v in m.state_dict().items()}
    assert all(torch.equal(held[key], after[key]) for key in held)


def test_training_lowers_the_loss_of_samples_that_it_sees(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 20}], ema=0.5))
    samples = open_samples(trainer.config, trainer.frozen, 0, 1)
    batch = collate([samples[t] for step in range(3) for t in samples.order.tickets(step, 0)])
    before = float(trainer.model(batch).mean().detach())
    trainer.run()
    after = float(trainer.model(batch).mean().detach())
    assert after < 0.9 * before


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


def test_cached_features_give_the_losses_of_uncached_ones_and_a_stale_cache_is_named(tmp_path: Path) -> None:
    from flexip_model.cli import main

    data = pack(tmp_path / "data")
    demo = ROOT / "models" / "demo"
    clip, dino = (str(demo / "encoders" / name) for name in ("clip_vision.safetensors", "dinov2.safetensors"))
    references = {"white": 0.5, "flip_image": 0.5, "flip_variant": 0.5, "crop": "pad"}
    plain = Trainer(config(data, tmp_path / "run", references=references, precision="bf16"))
    samples = open_samples(plain.config, plain.frozen, 0, 1)
    tickets = [t for step in range(4) for t in samples.order.tickets(step, 0)]
    uncached = collate([samples[t] for t in tickets])
    assert main(["data", "cache", str(data), "--vae", str(demo), "--clip", clip, "--dino", dino, "--size", "64",
                 "--flips"]) == 0
    samples = open_samples(plain.config, plain.frozen, 0, 1)
    assert "cached latents, clip, dino" in samples.groups.remarks[-1]
    cached = collate([samples[t] for t in tickets])
    assert {"latents", "cls", "patches"} <= cached.keys()
    assert not {"pixels", "clip_pixels", "dino_pixels"} & cached.keys()
    assert torch.equal(cached["keep"], uncached["keep"]) and not cached["keep"].all()
    without = open_samples(config(data, tmp_path, references=references, use_cache=False), plain.frozen, 0, 1)
    mixed = collate([(samples if number % 2 else without)[ticket] for number, ticket in enumerate(tickets)])
    with torch.no_grad():
        wanted = plain.model(uncached)
        assert torch.allclose(plain.model(cached), wanted, rtol=2e-2, atol=2e-3)
        assert torch.allclose(plain.model(mixed), wanted, rtol=2e-2, atol=2e-3)
    smaller = Trainer(config(data, tmp_path / "run", size=32, references=references, precision="bf16"))
    stale = open_samples(smaller.config, smaller.frozen, 0, 1)
    assert any("another size (64 px, now 32 px)" in sentence for sentence in stale.groups.remarks)
    assert "latents" not in stale[tickets[0]] and "cls" in stale[tickets[0]]


def test_a_folder_in_object_storage_trains_as_a_local_one(tmp_path: Path, monkeypatch) -> None:
    from flexip_model.cli import main
    from flexip_model.data import remote

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
