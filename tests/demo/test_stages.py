"""Every training stage runs at a miniature size on five drawn subjects, and does what it says."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from flexip_model.common import parallel
from flexip_model.demo.scenes import packing, words
from flexip_model.demo.scenes.compose import Composer
from flexip_model.demo.stages import cache, encoders, training, vae
from flexip_model.demo.stages.networks import build_adapter
from flexip_model.demo.stages.stage import Plan, newest
from flexip_model.demo.stages.tokens import load_tokens, run_tokens
from flexip_model.train.samples.sample_set import choose, open_samples
from flexip_model.train.trainer import Trainer

from ..support.demo_shapes import shapes
from ..support.paths import ROOT
from ..support.train_rig import config


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(shapes(), scene_variants=2)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> words.Words:
    folder = tmp_path_factory.mktemp("tokenizer")
    words.write_tokenizer(shapes(), folder, limit=60)
    return words.Words(folder)


def _plan(**changes) -> Plan:
    return Plan(**{"steps": 2, "batch": 4, "warmup": 1, "log_every": 1, **changes})


def test_vae_starts_as_block_means_and_its_latents_are_normalised(composer: Composer, tmp_path) -> None:
    torch.manual_seed(0)
    vae.run(composer, _plan(lr=1e-5), tmp_path)
    model = vae.load(tmp_path, composer)
    rng = np.random.default_rng(0)
    pixels = vae.to_pixels([composer.picture(composer.recipe(rng)) for _ in range(24)])
    with torch.no_grad():
        code = model.encode(pixels).latent_dist.mean * model.config.scaling_factor
        out = model.decode(code / model.config.scaling_factor).sample
    assert code.shape == (24, 4, 16, 16)
    assert code.mean((0, 2, 3)).abs().max() < 0.35 and (code.std((0, 2, 3)) - 1).abs().max() < 0.35
    assert (out - pixels).abs().mean() < 0.3


def test_encoders_learn_from_one_step_to_the_next(composer: Composer, tokens: words.Words, tmp_path) -> None:
    torch.manual_seed(0)
    clip = encoders.run_clip(composer, tokens, _plan(), tmp_path / "clip")
    dino = encoders.run_dino(composer, vae.build().eval(), _plan(), tmp_path / "dino")
    assert clip.step == dino.step == 2
    features = encoders.Features(
        encoders.load_clip(tokens, tmp_path / "clip").visual, encoders.load_dino(tmp_path / "dino")
    )
    cls, patches = features(torch.zeros(2, 3, 128, 128))
    assert cls.shape == (2, 128) and patches.shape == (2, 256, 128)


def _encoding(composer: Composer, tokens: words.Words):
    return (
        composer,
        vae.build().eval(),
        encoders.Features(
            encoders.ClipTrainer(len(tokens.tokenizer)).visual.eval(), encoders.DinoTrainer().encoder.eval()
        ),
    )


@pytest.fixture(scope="module")
def cached(composer: Composer, tokens: words.Words) -> cache.Cache:
    torch.manual_seed(0)
    return cache.Cache(*cache.make_part(*_encoding(composer, tokens), seed=(0, 0), count=24, batch=8))


def test_the_cache_gives_each_target_the_reference_of_its_kind(composer, tokens, cached, tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(cache, "PART", 24)
    cache.fill(lambda: _encoding(composer, tokens), tmp_path, count=30, processes=1, seed=0)
    read = cache.Cache.open(tmp_path)
    assert len(read) == 48
    assert read.recipes[:24] == cached.recipes
    variant = torch.tensor([True, False] * 4)
    batch = cached.draw(np.random.default_rng(1), variant)
    assert batch.latents.shape == (8, 4, 16, 16) and batch.mask.shape == (8, 16, 16) and batch.patches.shape[1] == 256
    assert 0.05 < batch.mask.mean() < 0.9 and batch.mask.max() <= 1
    for row, (recipe, other) in enumerate(zip(batch.recipes, variant, strict=True)):
        place = cached.recipes.index(recipe)
        assert torch.equal(batch.cls[row], cached.tensors["other_cls" if other else "same_cls"][place].float())


def test_tokens_learn_to_draw_and_hand_on_what_they_learned(cached: cache.Cache, tmp_path) -> None:
    torch.manual_seed(0)
    plan = Plan(steps=40, batch=8, warmup=1, log_every=10, lr=2e-3, ema=0.5)
    history = run_tokens(cached, plan, tmp_path).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    torch.manual_seed(0)
    new, learned = build_adapter().state_dict(), load_tokens(tmp_path).state_dict()
    moved = {key.split(".")[0] for key in new if not torch.equal(new[key], learned[key])}
    assert moved == {"project_retrieval", "queries", "resampler_queries"}


def test_base_and_adapter_learn_together_and_the_base_alone_too(composer, tokens, cached, tmp_path) -> None:
    torch.manual_seed(0)
    source = training.Source(composer, cached, tokens)
    torch.manual_seed(0)
    begun = training.Together(len(tokens.tokenizer)).state_dict()
    torch.manual_seed(0)
    training.run_together(source, training.Together(len(tokens.tokenizer)), _plan(batch=8, lr=1e-3), tmp_path)
    trained = training.load_together(tokens, tmp_path).state_dict()
    moved = [key for key, value in trained.items() if not torch.equal(value, begun[key])]
    for part in (
        "base.unet.conv_out",
        "base.text.",
        "adapter.resampler_queries",
        "adapter.resampler_text",
        ".preservation.",
        ".personalization.",
    ):
        assert any(part in name for name in moved), part


def test_the_trainer_reads_what_the_composer_packs(composer, tmp_path) -> None:
    packing.pack(composer, tmp_path / "data", 6)
    trainer = Trainer(config(tmp_path / "data", tmp_path / "run", stages=[{"steps": 1}]))
    trainer.run()
    samples = open_samples(trainer.config, trainer.frozen, 0, 1)
    assert samples.sampler.counts == (3, 3)
    group = samples.groups.get(0, 0).group
    target, reference = choose(group, False, np.random.default_rng(0))
    assert (target.role, reference.role) == ("target", "reference") and len(target.captions) == packing.CAPTIONS


def test_a_stage_continues_where_it_stopped(composer: Composer, tmp_path) -> None:
    torch.manual_seed(0)
    vae.run(composer, _plan(), tmp_path)
    further = _plan(steps=3)
    stage = vae.run(composer, further, tmp_path)
    assert stage.step == 3 and [entry["step"] for entry in stage.history] == [1, 2, 3]
    averaged = newest(tmp_path).parts["ema"]
    assert all(torch.equal(value, averaged[name]) for name, value in stage.trained.named_parameters())


def _train_vae(folder: Path) -> None:
    vae.run(Composer(shapes(), scene_variants=2), _plan(), folder)


def test_two_processes_train_one_stage_and_write_it_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))  # the new processes import this file
    parallel.run(partial(_train_vae, tmp_path), 2, seed=0)
    found = newest(tmp_path)
    assert found.step == 2 and found.info["world"] == 2 and len(found.info["history"]) == 2
    torch.manual_seed(0)
    alone = vae.run(Composer(shapes(), scene_variants=2), _plan(), tmp_path / "alone").trained
    # The same beginning, but the mean gradient of two batches.
    differ = [name for name, value in alone.named_parameters() if not torch.equal(value, found.parts["ema"][name])]
    assert differ and all(
        (dict(alone.named_parameters())[name] - found.parts["ema"][name]).abs().max() < 0.02 for name in differ
    )
