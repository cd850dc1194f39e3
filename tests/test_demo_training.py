"""Every training stage runs at a miniature size on five drawn subjects, and does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flexip_model.demo import cache, encoders, training, vae, words
from flexip_model.demo.compose import Composer
from flexip_model.demo.loop import Plan

from .demo_shapes import shapes


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(shapes(), scene_variants=2)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> words.Words:
    folder = tmp_path_factory.mktemp("tokenizer")
    words.write_tokenizer(shapes(), folder, limit=60)
    return words.Words(folder)


def _plan(**changes) -> Plan:
    return Plan(minutes=0, steps=2, warmup=1, log_every=1, **changes)


def test_vae_starts_as_block_means_and_its_latents_are_normalised(composer: Composer, tmp_path) -> None:
    torch.manual_seed(0)
    vae.run(composer, _plan(lr=1e-5), tmp_path, batch=4)
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
    clip = encoders.run_clip(composer, tokens, _plan(), tmp_path / "clip", batch=4)
    dino = encoders.run_dino(composer, _plan(), tmp_path / "dino", batch=4)
    assert clip.step == dino.step == 2
    features = encoders.Features(encoders.load_clip(tokens, tmp_path / "clip").visual,
                                 encoders.load_dino(tmp_path / "dino"))
    cls, patches = features(torch.zeros(2, 3, 128, 128))
    assert cls.shape == (2, 128) and patches.shape == (2, 64, 128)


def test_stage_four_moves_the_adapter_and_not_the_base(composer: Composer, tokens: words.Words, tmp_path) -> None:
    torch.manual_seed(0)
    recipes = [composer.recipe(np.random.default_rng(i)) for i in range(12)]
    latents = cache.LatentCache(recipes, np.random.default_rng(0).standard_normal((12, 4, 16, 16)).astype(np.float16))
    features = encoders.Features(encoders.ClipTrainer(len(tokens.tokenizer)).visual.eval(),
                                 encoders.DinoTrainer().encoder.eval())
    source = training.Source(composer, latents, tokens, features)
    training.run_together(source, None, _plan(lr=1e-3), tmp_path / "together", batch=6)
    model = training.load_together(tokens, tmp_path / "together")
    base = {k: v.clone() for k, v in model.base.state_dict().items()}
    before = {k: v.clone() for k, v in model.adapter.state_dict().items()}
    training.run_adapter(source, model, _plan(lr=1e-3), tmp_path / "adapter", batch=4)
    assert all(torch.equal(v, base[k]) for k, v in model.base.state_dict().items())
    moved = [k for k, v in model.adapter.state_dict().items() if not torch.equal(v, before[k])]
    assert any(".preservation." in k for k in moved) and any(".personalization." in k for k in moved)
    assert any(k.startswith("resampler_queries") for k in moved)


def test_a_stage_continues_where_it_stopped(composer: Composer, tmp_path) -> None:
    torch.manual_seed(0)
    vae.run(composer, _plan(), tmp_path, batch=4)
    further = Plan(minutes=0, steps=3, warmup=1, log_every=1)
    assert vae.run(composer, further, tmp_path, batch=4).step == 3
