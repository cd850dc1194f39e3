"""The trainer in trouble: gradients that are not finite, samples that cannot be read, too little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flexip_model.common.errors import FlexIPError
from flexip_model.train.samples.sample_set import open_samples
from flexip_model.train.samples.unreadable import Unreadable
from flexip_model.train.shared import state
from flexip_model.train.trainer import Trainer

from ..support.train_rig import config, pack, tensors, train


@pytest.mark.promise(27)
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


@pytest.mark.promise(27)
def test_a_run_without_finite_gradients_stops_and_keeps_the_last_good_weights(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flexip_model.train.shared.loop.BAD_STEPS", 3)
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 9}], save_every=1))
    before = {key: value.clone() for key, value in trainer.adapter.state_dict().items()}
    plain = trainer.model.forward
    monkeypatch.setattr(trainer.model, "forward", lambda batch: plain(batch) * float("inf"))
    with pytest.raises(FlexIPError, match="3 steps in a row gave no finite gradient"):
        trainer.run()
    assert all(torch.equal(value, before[key]) for key, value in trainer.adapter.state_dict().items())


@pytest.mark.promise(45)
def test_unreadable_samples_are_replaced_and_counted_and_too_many_end_the_run(tmp_path: Path) -> None:
    data = pack(tmp_path / "data", broken=1)
    trainer = train(data, tmp_path / "run", stages=[{"steps": 4}], bad_share=1.0)
    samples = open_samples(trainer.config, trainer.frozen, 0, 1)
    drawn = [len(samples[t].complaints) for step in range(4) for t in samples.sampler.tickets(step, 0)]
    assert trainer.unreadable == sum(drawn) > 0
    with pytest.raises(
        FlexIPError,
        match=r"\d+ of \d+ groups that were tried could not be read, more than 1.0%, the last: drawn, group",
    ):
        train(pack(tmp_path / "worse", broken=4), tmp_path / "run2", stages=[{"steps": 30}], bad_share=0.01)


def test_a_missing_tar_is_said_and_retries_are_no_samples(tmp_path: Path, caplog) -> None:
    data = pack(tmp_path / "data", images=40, variants=5)
    shards = sorted((data / "shards").iterdir())
    shards[0].unlink()
    with caplog.at_level("WARNING", "flexip_model"):
        trainer = train(data, tmp_path / "run", stages=[{"steps": 12}], bad_share=1.0)
    assert "group takes its place: drawn, group 'drawn-00" in caplog.text and shards[0].name in caplog.text
    assert sum("takes its place" in record.message for record in caplog.records) <= 5 < trainer.unreadable
    with pytest.raises(FlexIPError, match="groups that were tried could not be read") as told:
        Unreadable().met(["it is gone"], 15, 12, 0.5)
    assert str(told.value).startswith("15 of 27 groups") and "the last: it is gone" in str(told.value)


def test_a_damaged_picture_among_the_previews_subjects_is_passed_over(tmp_path: Path, caplog) -> None:
    data = pack(tmp_path / "data", variants=8, captioned=13)
    trainer = Trainer(config(data, tmp_path / "run", uncaptioned=0.5))
    samples = open_samples(trainer.config, trainer.frozen, 0, 1)
    whole = samples.preview(6)
    assert whole is not None and all(whole.prompts)
    first = next(samples.groups.validation()).group.frames
    with (data / "shards" / first[0].shard).open("r+b") as shard:
        for frame in first:
            shard.seek(frame.offset)
            shard.write(bytes(frame.bytes))
    with caplog.at_level("WARNING", "flexip_model"):
        found = open_samples(trainer.config, trainer.frozen, 0, 1).preview(6)
    assert found is not None and len(found.references) == 6 and "left out of the previews" in caplog.text
    assert found.prompts[:5] == whole.prompts[1:]


def test_a_side_without_groups_is_named(tmp_path: Path) -> None:
    data = pack(tmp_path / "data", variants=0)
    with pytest.raises(FlexIPError, match=r"no variant groups .* image_share: 1"):
        train(data, tmp_path / "run")
    train(data, tmp_path / "run", image_share=1, stages=[{"steps": 1}])


def test_samples_without_captions_are_refused_above_a_share_and_told_below_it(tmp_path: Path, caplog) -> None:
    data = pack(tmp_path / "data", images=7, variants=4, captioned=9)
    with pytest.raises(FlexIPError, match=r"6 of the 12 target frames of variant groups .* \(50\.0%\).*data caption"):
        train(data, tmp_path / "run", stages=[{"steps": 1}])
    with caplog.at_level("INFO", "flexip_model"):
        train(data, tmp_path / "run", stages=[{"steps": 1}], uncaptioned=0.5)
    assert "variant groups: 6 of 12 target frames have no caption (50.0%)" in caplog.text
    caplog.clear()
    with pytest.raises(FlexIPError, match="7 of the 7 target frames of image groups"):
        train(pack(tmp_path / "bare", captioned=0), tmp_path / "run2", image_share=1)


def test_groups_that_share_one_caption_are_told_before_the_first_step(tmp_path: Path, caplog) -> None:
    data = pack(tmp_path / "data", shared=True)
    with caplog.at_level("INFO", "flexip_model"):
        train(data, tmp_path / "run", stages=[{"steps": 1}])
    assert "variant groups: 5 of 5 variant groups have one caption for all of their frames" in caplog.text


@pytest.mark.promise(47)
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


def test_tiny_numbers_are_flushed_while_a_run_trains_and_not_after_it(data: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 1}]))
    plain, seen = trainer.model.forward, []

    def watched(batch):
        seen.append(float(torch.full((64,), 1e-39).mul(0.5).sum()))
        return plain(batch)

    monkeypatch.setattr(trainer.model, "forward", watched)
    trainer.run()
    assert seen == [0.0] and float(torch.full((64,), 1e-39).mul(0.5).sum()) > 0
