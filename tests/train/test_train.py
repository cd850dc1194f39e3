"""The trainer: its config, its samples in exact halves, on one device or several."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flexip_model.__main__ import main
from flexip_model.common.errors import FlexIPError
from flexip_model.data.format import NewFrame, NewGroup, ShardWriter
from flexip_model.method.gate import spread_gamma
from flexip_model.train.configs.options import ConditioningDropout, to_dict
from flexip_model.train.configs.read import NAMED, from_dict, load_config
from flexip_model.train.samples.batch import collate
from flexip_model.train.samples.sample_set import open_samples
from flexip_model.train.samples.sampler import Ticket, TicketBatchSampler, TicketSampler
from flexip_model.train.trainer import Trainer

from ..support.paths import ROOT
from ..support.train_rig import config, png, tensors_of

# Order


def test_every_device_batch_holds_both_kinds_in_equal_numbers_and_no_group_twice_in_an_epoch() -> None:
    sampler = TicketSampler((6, 4), images=2, batch=4, world_size=2, seed=3)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for step in range(3):
        for rank in range(2):
            tickets = sampler.tickets(step, rank)
            assert [t.side for t in tickets] == [0, 0, 1, 1]
            for ticket in tickets:
                seen[ticket.side].append(sampler.group(ticket))
    assert sorted(seen[0][:6]) == list(range(6)) and sorted(seen[0][6:]) == list(range(6))
    assert all(sorted(seen[1][i : i + 4]) == list(range(4)) for i in (0, 4, 8))


def test_devices_share_the_samples_that_one_device_with_the_whole_batch_would_see() -> None:
    alone = TicketSampler((50, 50), images=4, batch=8, world_size=1, seed=0)
    shared = TicketSampler((50, 50), images=2, batch=4, world_size=2, seed=0)
    for step in range(10):
        parts = [*shared.tickets(step, 0), *shared.tickets(step, 1)]
        assert sorted(alone.tickets(step, 0)) == sorted(parts)


def test_a_sampler_that_starts_later_gives_what_the_whole_one_gives_there() -> None:
    sampler = TicketSampler((9, 5), images=1, batch=2, world_size=1, seed=1)
    whole, later = (TicketBatchSampler(sampler, rank=0, first=first, end=9) for first in (0, 4))
    assert list(later) == list(whole)[4:] and len(later) == 5


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
    [
        ("batch: 7", "split"),
        ("lr: fast", "lr is 'fast'; it should be a valid number"),
        ("lr: 0", "lr is 0; it should be greater than 0"),
        ("warmup: true", "warmup is True; it should be a valid integer"),
        ("size: 60", "size is 60; it should be a multiple of 8"),
        ("precision: fp16", "precision is 'fp16'; it should be 'bf16' or 'fp32'"),
        ("learning_rate: 1", "unknown key learning_rate; known are base, clip"),
        ("stages: [{stops: 3}]", "unknown key stages.0.stops; known are steps, quality"),
        ("stages: [{quality: high}]", "stages.0.steps is missing"),
        ("stages: [3]", "stages.0 is 3; it should be `key: value` lines"),
        ("betas: 0.9", "betas is 0.9; it should be a list"),
        ("- a", "key: value"),
        ("a: [", "not YAML"),
        ("extends: nowhere.yaml", "no config"),
        ("stages: []", "no stage"),
        ("dropout: {text: 0.95}", "sum of the dropouts"),
        ("references: {white: 2}", "references.white is 2; it should be less than or equal to 1"),
        ("adapter: {depht: 3}", "no field depht"),
        ("adapter: {alpha: high}", "adapter.alpha is 'high'; it should be a valid number"),
        ("preview_steps: 0", "preview_steps is 0; it should be greater than or equal to 1"),
    ],
)
def test_a_wrong_config_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text if text.startswith(("extends", "-", "a:")) else f"extends: demo\n{text}\n")
    with pytest.raises(FlexIPError, match=words):
        load_config(path)


def test_a_value_set_on_the_command_line_is_read_as_in_the_file_or_named(capsys) -> None:
    found = load_config("demo", {"adapter.alpha": "9e-1", "lr": "1e-4", "stages": {"steps": 5}})
    assert (found.adapter["alpha"], found.lr, [stage.steps for stage in found.stages]) == (0.9, 1e-4, [5])
    with pytest.raises(FlexIPError, match=r"stages.0.steps cannot be set: stages is \[.*set stages as a whole"):
        load_config("demo", {"stages": [{"steps": 5}], "stages.0.steps": 50})
    assert main(["train", "demo", "--set", "title=a: b: c"]) == 2
    assert "--set title=a: b: c: the value is not YAML" in capsys.readouterr().err


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
        one, again = tensors_of(collate([a])), tensors_of(collate([b]))
        assert one.keys() == again.keys() and all(torch.equal(one[name], again[name]) for name in one)
        target = torch.nn.functional.interpolate(a.pixels[None] / 2 + 0.5, 112, mode="bicubic", antialias=True)[0]
        distance = float((target - a.reference.clip_pixels).abs().mean())
        assert distance < 0.02 if ticket.side == 0 else distance > 0.02
    assert first[Ticket(0, 3, 0)].timestep != first[Ticket(0, 4, 0)].timestep


def test_each_case_of_the_dropout_has_its_part_of_what_is_drawn() -> None:
    no_image, no_text = ConditioningDropout(image=0.1, text=0.2, both=0.3).drop(
        [0, 0.0999, 0.1, 0.2999, 0.301, 0.599, 0.601]
    )
    assert no_image.tolist() == [True, True, False, False, True, True, False]
    assert no_text.tolist() == [False, False, True, True, True, True, False]


def test_dropout_has_three_exclusive_cases_of_the_share_asked_for(data: Path, tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    c = config(data, tmp_path, size=16, dropout={"image": 0.2, "text": 0.2, "both": 0.2})
    samples = open_samples(c, load_frozen(c), 0, 1)
    empty = samples.tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    cases = []
    for number in range(120):
        sample = samples[Ticket(0, number, 0)]
        cases.append((sample.no_image, bool(torch.equal(sample.input_ids, empty))))
    shares = {case: cases.count(case) / len(cases) for case in set(cases)}
    assert all(abs(shares[case] - 0.2) < 0.12 for case in ((True, False), (False, True), (True, True)))


def test_a_flipped_reference_has_its_mask_flipped_with_it(data: Path, tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    found = []
    for share in (0.0, 1.0):
        c = config(data, tmp_path, references={"white": 1.0, "flip_image": share, "crop": "pad"})
        found.append(open_samples(c, load_frozen(c), 0, 1)[Ticket(0, 1, 0)])
    plain, flipped = found
    assert torch.equal(plain.reference.dino_pixels.flip(-1), flipped.reference.dino_pixels)
    assert torch.equal(plain.reference.keep.unflatten(0, (16, 16)).flip(-1).flatten(), flipped.reference.keep)
    assert not plain.reference.keep.all()


def test_gradient_checkpointing_changes_memory_and_not_the_gradients(data: Path, tmp_path: Path) -> None:
    found = []
    for saving in (False, True):
        trainer = Trainer(config(data, tmp_path, gradient_checkpointing=saving))
        samples = open_samples(trainer.config, trainer.frozen, 0, 1)
        trainer.model(collate([samples[t] for t in samples.sampler.tickets(0, 0)])).mean().backward()
        found.append({name: p.grad for name, p in trainer.adapter.named_parameters()})
    assert trainer.frozen.unet.is_gradient_checkpointing
    plain, saved = found
    assert all(torch.allclose(plain[name], saved[name], atol=1e-6) for name in plain)


def test_gamma_is_spread_over_the_dial_with_more_own_references_the_higher(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(data, tmp_path, gamma_spread=1.0))
    samples = open_samples(trainer.config, trainer.frozen, 0, 1)
    tickets = [t for step in range(3) for t in samples.sampler.tickets(step, 0)]
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


def test_padding_is_read_neither_in_training_nor_in_the_nodes(tmp_path: Path) -> None:
    from flexip_model.train.frozen import load_frozen

    picture = Image.new("RGB", (128, 64), "red")
    content = png(picture)
    writer = ShardWriter(tmp_path / "data", "wide", "CC0", note="drawn for a test", max_bytes=1 << 16)
    for kind, count in (("image", 1), ("video", 2)):
        frames = tuple(NewFrame(content, 128, 64, 1.0, f"{i:016x}", captions=("a red thing",)) for i in range(count))
        writer.add(NewGroup(f"wide-{kind}", kind, frames))
    writer.close()
    c = config(tmp_path / "data", tmp_path, references={"white": 0.0, "flip_image": 0.0, "crop": "pad"})
    frozen = load_frozen(c)
    keep = open_samples(c, frozen, 0, 1)[Ticket(0, 0, 0)].reference.keep
    assert keep.unflatten(0, (16, 16))[4:12].all() and keep.float().mean() == 0.5
    seen = frozen.encoders.encode([picture], crop="pad").keep
    assert seen is not None and torch.equal(keep, seen[0])


# Devices


def _gradients(data: Path, output: Path, batch: int, *launches: list[str]) -> dict[str, torch.Tensor]:
    """The gradients of one step, after launchers that are started beside each other, as on several machines."""
    output.mkdir()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    script = [str(Path(__file__).parent / "gradients.py"), str(data), str(output), str(batch)]
    started = [
        subprocess.Popen([sys.executable, "-m", *launch, *script], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for launch in launches
    ]
    for process in started:
        complaint = process.communicate(timeout=300)[1]
        assert process.returncode == 0, complaint[-3000:]
    return load_file(output / "gradients.safetensors")


def test_two_processes_and_two_machines_have_the_gradients_of_one_with_the_same_global_batch(
    data: Path, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one = _gradients(data, tmp_path / "one", 8, ["torch.distributed.run", "--standalone", "--nproc_per_node", "1"])
    processes = _gradients(
        data, tmp_path / "processes", 4, ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    )
    machines = _gradients(
        data,
        tmp_path / "machines",
        4,
        *(
            [
                "torch.distributed.run",
                "--nnodes",
                "2",
                "--node_rank",
                rank,
                "--nproc_per_node",
                "1",
                "--master_addr",
                "127.0.0.1",
                "--master_port",
                str(port),
            ]
            for rank in "01"
        ),
    )
    largest = max(float(value.abs().max()) for value in one.values())
    for several in (processes, machines):
        assert one.keys() == several.keys()
        worst = max(float((one[key] - several[key]).abs().max()) for key in one)
        assert worst <= 1e-6 * max(1.0, largest) and largest > 1e-4
