"""Two hosts, one result: the same weights give the same noise in diffusers and in ComfyUI (fp32, ≤ 1e-5)."""

from dataclasses import replace

import pytest
import torch

from flexip_model.hosts.diffusers import Condition, inject
from flexip_model.method.gate import gamma_tensor

from ..support.helpers import tiny_adapter, tiny_unet


@pytest.fixture(scope="module")
def diffusers_host():
    return inject(tiny_unet(0), tiny_adapter(0))


def expected(host, call, cond, text, features, gamma):
    """diffusers' prediction for one cond of a recorded call, from the same inputs and its own P and S."""
    adapter = host.adapter
    rows = slice(*(len(call.x) // len(call.conds) * (call.conds.index(cond) + i) for i in (0, 1)))
    x, t = call.x[rows], call.timesteps[rows]
    if cond == 1:
        features = adapter.null_features(1, features.patches)
    s = adapter.personalization(text, features.cls).expand(len(x), -1, -1)
    p = adapter.preservation(features).expand(len(x), -1, -1)
    host.condition = Condition(p, s, gamma_tensor(gamma))
    with torch.no_grad():
        return host.unet(x, t, encoder_hidden_states=text.expand(len(x), -1, -1)).sample


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(("tokens", "negative_tokens"), [(77, 77), (154, 154), (77, 154)])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, "each"])
def test_same_noise(rig, diffusers_host, batch, tokens, negative_tokens, gamma):
    gamma = torch.linspace(0, 1, batch).tolist() if gamma == "each" else gamma
    positive, negative = rig.prompts(tokens, negative_tokens)
    features = rig.features()
    calls = rig.calls(rig.apply(gamma), *rig.encode(positive, negative, features), batch=batch)
    assert len(calls) == 1 and sorted(calls[0].conds) == [0, 1]
    for cond, prompt in ((0, positive), (1, negative)):
        wanted = expected(diffusers_host, calls[0], cond, prompt[0][0], features, gamma)
        assert (calls[0].of(cond) - wanted).abs().max() <= 1e-5


def test_the_base_models_agree_without_the_adapter(rig, diffusers_host):
    positive, negative = rig.prompts()
    call = rig.calls(rig.model, positive, negative)[0]
    diffusers_host.condition = None
    with torch.no_grad():
        text = torch.cat([(positive, negative)[cond][0][0] for cond in call.conds])
        wanted = diffusers_host.unet(call.x, call.timesteps, encoder_hidden_states=text).sample
    assert (call.out - wanted).abs().max() <= 1e-5


def test_a_calibrated_dial_is_turned_alike(rig, diffusers_host, monkeypatch):
    positive, negative = rig.prompts()
    features = rig.features()
    tokens = rig.encode(positive, negative, features)
    plain = rig.calls(rig.apply(0.16), *tokens)[0].out
    calibrated = replace(diffusers_host.adapter.config, dial=(0.0, 0.02, 0.3, 1.0))
    for adapter in (rig.adapter.adapter, diffusers_host.adapter):
        monkeypatch.setattr(adapter, "config", calibrated)
    call = rig.calls(rig.apply(0.5), *tokens)[0]  # half way between a third (0.02) and two thirds (0.3)
    assert (call.out - plain).abs().max() <= 1e-5
    assert (rig.calls(rig.apply(0.4), *tokens)[0].out - plain).abs().max() > 1e-4
    for cond, prompt in ((0, positive), (1, negative)):
        wanted = expected(diffusers_host, call, cond, prompt[0][0], features, 0.5)
        assert (call.of(cond) - wanted).abs().max() <= 1e-5
