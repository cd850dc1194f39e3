"""Looking inside a UNet of diffusers: pictures stay as they are, and nothing is computed while nobody looks."""

import pytest
import torch

from flexip_model.hosts import diffusers
from flexip_model.hosts.diffusers import Condition, inject
from flexip_model.method import gate
from flexip_model.method.gate import gamma_tensor
from flexip_model.method.inside import record as record_module
from flexip_model.method.inside.maps import GROUPS
from flexip_model.method.sites import SD15_SITES

from ..support.helpers import tiny_adapter, tiny_features, tiny_unet

torch.manual_seed(3)
NOISY, STEP, TEXT = torch.randn(2, 4, 16, 12), torch.tensor([400]), torch.randn(2, 77, 48)


@pytest.fixture
def host():
    adapter = tiny_adapter()
    found = inject(tiny_unet(), adapter)
    features = tiny_features(adapter.config, batch=2)
    found.condition = Condition(
        adapter.preservation(features), adapter.personalization(TEXT, features.cls), gamma_tensor([0.3, 0.8])
    )
    return found


def noise(host, rows=slice(None), **more):
    with torch.no_grad():
        return host.unet(NOISY[rows], STEP, encoder_hidden_states=TEXT[rows], **more).sample


def test_watching_changes_no_number_and_sees_every_layer(host):
    plain = noise(host)
    with host.watch() as record:
        assert torch.equal(noise(host), plain)
        noise(host)
    assert torch.equal(noise(host), plain)
    assert (record.steps, record.pictures) == (2, 2)
    for site in SD15_SITES:
        assert record.at(1, site, 1).shape == (2, len(GROUPS), *site.grid(16, 12))
    maps = record.mean()
    torch.testing.assert_close(maps.weights["queries"] + maps.weights["cls"], torch.ones(2, 16, 12))
    assert maps.missing == ()


def test_without_watching_nothing_of_it_runs(host, monkeypatch):
    def never(*_, **__):
        raise AssertionError("looked at")

    monkeypatch.setattr(record_module, "layer_maps", never)
    monkeypatch.setattr(diffusers.GatedAttnProcessor, "look", never)
    monkeypatch.setattr(diffusers, "AttentionRecord", never)
    noise(host)
    with pytest.raises(AssertionError, match="looked at"), host.watch():
        pass


def test_gamma_scales_what_is_seen_and_not_where_it_attends(host):
    """By Eq. 4; at the first layer, whose input is the same."""
    with host.watch() as record:
        noise(host)
        host.condition.gamma = gamma_tensor([0.6, 0.4])
        noise(host)
    first = SD15_SITES[0]
    before, after = record.at(1, first, 0), record.at(2, first, 0)
    calibration = host.adapter.config.dial
    (p0, s0), (p1, s1) = (gate.weights(torch.tensor(g), 1.0, calibration) for g in (0.3, 0.6))
    names = list(GROUPS)
    for name, factor in {"queries": p1 / p0, "cls": p1 / p0, "s": s1 / s0, "text": 1.0}.items():
        torch.testing.assert_close(after[1, names.index(name)], factor * before[1, names.index(name)])
    torch.testing.assert_close(after[0], before[0])


def test_some_rows_are_those_rows(host):
    with host.watch() as record:
        noise(host)
    with host.watch(slice(1, 2)) as second:
        noise(host)
    assert second.pictures == 1
    torch.testing.assert_close(second.at(1, SD15_SITES[3], 0), record.at(1, SD15_SITES[3], 1))


def test_a_mask_on_the_prompt_hides_its_tokens(host):
    mask = torch.ones(2, 77)
    mask[:, 1:] = 0
    with host.watch() as record:
        plain = noise(host, encoder_attention_mask=mask)
    assert record.mean().weights["text"].max() < 1e-6
    assert torch.equal(noise(host, encoder_attention_mask=mask), plain)


def test_no_condition_and_strength_zero_have_nothing_to_show(host):
    condition, host.condition = host.condition, None
    with host.watch() as record:
        noise(host)
    assert record.steps == 0
    host.condition = condition
    host.condition.strength = 0.0
    with host.watch() as record:
        noise(host)
    assert (record.steps, record.bytes) == (1, 0)
