"""One training step: its gradients, its γ, and features from caches."""

from __future__ import annotations

from pathlib import Path

import torch

from flexip_model.__main__ import main
from flexip_model.hosts.prompts import prompt_ids
from flexip_model.method.gate import spread_gamma
from flexip_model.train.samples.batch import collate
from flexip_model.train.samples.sample_set import open_samples
from flexip_model.train.samples.sampler import Ticket
from flexip_model.train.trainer import Trainer

from ..support.paths import ROOT
from ..support.train_rig import config, pack, tensors_of


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


def test_a_caption_of_any_length_is_trained_on_and_a_batch_of_several_lengths_changes_no_sample(tmp_path: Path) -> None:
    data = pack(tmp_path / "data", captions=["a dog", "a red dog on the beach " * 14, "a red dog " * 60])
    trainer = Trainer(config(data, tmp_path / "run"))
    samples = open_samples(trainer.config, trainer.frozen, 0, 1)
    found = {}
    for number in range(40):
        sample = samples[Ticket(0, number, 0)]
        found.setdefault(len(sample.input_ids) // 77, sample)
    assert sorted(found) == [1, 2, 3]  # as many pieces as the captions have
    with torch.no_grad():
        for parameter in trainer.adapter.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        batch = collate([found[k] for k in (1, 2, 3)])
        assert batch.input_ids.shape == (3, 6 * 77) and batch.pieces == (1, 2, 3)
        together = trainer.model(batch)
        alone = torch.cat([trainer.model(collate([found[k]])) for k in (1, 2, 3)])
    assert torch.allclose(together, alone, rtol=1e-4)
    plain = trainer.frozen.tokenizer("a dog", padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    assert torch.equal(prompt_ids(trainer.frozen.tokenizer, "a dog", 3), plain)
    assert len(prompt_ids(trainer.frozen.tokenizer, "a red dog " * 60, 2)) == 2 * 77


def test_latents_are_the_mean_of_the_vaes_distribution_unless_the_config_asks_for_samples(data, tmp_path) -> None:
    mean, drawn = (Trainer(config(data, tmp_path, latents=how)) for how in ("mean", "sample"))
    ticket = Ticket(0, 1, 0)
    plain, sample = (open_samples(t.config, t.frozen, 0, 1)[ticket] for t in (mean, drawn))
    assert plain.posterior is None and sample.posterior is not None
    for name, value in tensors_of(collate([plain])).items():
        assert torch.equal(value, tensors_of(collate([sample]))[name]), name
    pixels, posterior = sample.pixels[None], sample.posterior[None]
    middle = drawn.frozen.encode_latents(pixels)
    below, above = (drawn.frozen.encode_latents(pixels, sign * posterior) for sign in (-1, 1))
    assert not torch.equal(above, middle) and torch.allclose((below + above) / 2, middle, atol=1e-5)
    with torch.no_grad():
        losses = [float(drawn.model(collate([s]))) for s in (plain, sample)]
    assert losses[0] != losses[1]


def test_training_lowers_the_loss_of_samples_that_it_sees(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 20}], ema=0.5))
    samples = open_samples(trainer.config, trainer.frozen, 0, 1)
    batch = collate([samples[t] for step in range(3) for t in samples.sampler.tickets(step, 0)])
    before = float(trainer.model(batch).mean().detach())
    trainer.run()
    after = float(trainer.model(batch).mean().detach())
    assert after < 0.9 * before


def test_the_base_and_its_encoders_stay_as_they_are(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(data, tmp_path, stages=[{"steps": 2}]))
    held = {f"{i}.{k}": v.clone() for i, m in enumerate(trainer.frozen._modules()) for k, v in m.state_dict().items()}
    trainer.run()
    after = {f"{i}.{k}": v for i, m in enumerate(trainer.frozen._modules()) for k, v in m.state_dict().items()}
    assert all(torch.equal(held[key], after[key]) for key in held)


def test_cached_features_give_the_losses_of_uncached_ones_and_a_stale_cache_is_named(tmp_path: Path) -> None:

    data = pack(tmp_path / "data")
    demo = ROOT / "models" / "demo"
    clip, dino = (str(demo / "encoders" / name) for name in ("clip_vision.safetensors", "dinov2.safetensors"))
    references = {"white": 0.5, "flip_image": 0.5, "flip_variant": 0.5, "crop": "pad"}
    plain = Trainer(config(data, tmp_path / "run", references=references, precision="bf16"))
    samples = open_samples(plain.config, plain.frozen, 0, 1)
    tickets = [t for step in range(4) for t in samples.sampler.tickets(step, 0)]
    uncached = collate([samples[t] for t in tickets])
    assert (
        main(
            ["data", "cache", str(data), "--vae", str(demo), "--clip", clip, "--dino", dino, "--size", "64", "--flips"]
        )
        == 0
    )
    samples = open_samples(plain.config, plain.frozen, 0, 1)
    assert "cached latents, clip, dino" in samples.groups.remarks[-1]
    cached = collate([samples[t] for t in tickets])
    assert all(feature.pixels is None for feature in (cached.latents, cached.cls, cached.patches))
    assert torch.equal(cached.keep, uncached.keep) and not cached.keep.all()
    without = open_samples(config(data, tmp_path, references=references, use_cache=False), plain.frozen, 0, 1)
    mixed = collate([(samples if number % 2 else without)[ticket] for number, ticket in enumerate(tickets)])
    with torch.no_grad():
        wanted = plain.model(uncached)
        assert torch.allclose(plain.model(cached), wanted, rtol=2e-2, atol=2e-3)
        assert torch.allclose(plain.model(mixed), wanted, rtol=2e-2, atol=2e-3)
    smaller = Trainer(config(data, tmp_path / "run", size=32, references=references, precision="bf16"))
    stale = open_samples(smaller.config, smaller.frozen, 0, 1)
    assert any("another size (64 px, now 32 px)" in sentence for sentence in stale.groups.remarks)
    assert stale[tickets[0]].latents is None and stale[tickets[0]].reference.cls is not None
