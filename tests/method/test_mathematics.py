"""The method against the paper: counts, the unified input, exact ends of γ, one γ per sample."""

import json

import pytest
import torch

from flexip_model.common.errors import FlexIPError
from flexip_model.method.adapters import ADAPTERS, FlexIPAdapter, IPAdapterPlus, ReferenceFeatures, adapter_class
from flexip_model.method.attention import attend, gated_attention
from flexip_model.method.config import FlexIPConfig
from flexip_model.method.gate import DynamicWeightGate, gamma_tensor, weights
from flexip_model.method.resampler import PerceiverAttention
from flexip_model.method.sites import SD15_SITES

from ..support.helpers import tiny_adapter, tiny_config, tiny_features


def count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def test_weight_counts_at_full_size():
    with torch.device("meta"):
        flexip = FlexIPAdapter(FlexIPConfig())
        plus = IPAdapterPlus(FlexIPConfig(kind="ip-adapter-plus", retrieval_width=1280))
    assert count(flexip.resampler_queries.layers.parameters()) == 28_329_984
    assert count(p for name, p in flexip.named_parameters() if ".attn2." in name) == 38_338_560
    assert count(flexip.parameters()) == 127_282_176
    assert count(plus.parameters()) == 49_087_488  # IP-Adapter-Plus for SD1.5 as published


def test_sixteen_sites_in_both_hosts_names():
    assert len(SD15_SITES) == 16
    assert {site.comfy for site in SD15_SITES} == (
        {("input", n) for n in (1, 2, 4, 5, 7, 8)} | {("middle", 0)} | {("output", n) for n in range(3, 12)}
    )


def test_psa_equals_the_papers_formula_with_x_among_the_keys():
    torch.manual_seed(0)
    psa = PerceiverAttention(width=8, heads=1, head_width=8)
    x, d = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    keys = torch.cat([psa.norm_x(x), psa.norm_d(d)], dim=1)
    scores = psa.to_q(psa.norm_x(x)) @ psa.to_k(keys).transpose(1, 2) / 8**0.5
    expected = psa.to_out(torch.softmax(scores, dim=-1) @ psa.to_v(keys))
    torch.testing.assert_close(psa(x, d), expected)


def test_dropped_retrieval_tokens_have_no_influence():
    adapter = tiny_adapter()
    features = tiny_features(adapter.config, patches=6)
    keep = torch.tensor([[True, True, False, True, False, True]])
    spoiled = features.patches.masked_fill(~keep[..., None], 1e3)
    p = adapter.preservation(features._replace(keep=keep))
    torch.testing.assert_close(p, adapter.preservation(ReferenceFeatures(features.cls, spoiled, keep)))
    torch.testing.assert_close(p, adapter.preservation(ReferenceFeatures(features.cls, features.patches[:, keep[0]])))


def test_shapes_of_p_and_s_and_that_text_tokens_stay_apart():
    adapter = tiny_adapter()
    features = tiny_features(adapter.config, batch=2)
    text = torch.randn(2, 154, adapter.config.text_width)
    assert adapter.preservation(features).shape == (2, 17, 48)
    s = adapter.personalization(text, features.cls)
    assert s.shape == (2, 154, 48)
    assert s.std(dim=1).mean() > 0.1


def test_personalization_reads_the_cls_and_preservation_never_the_text():
    adapter = tiny_adapter()
    features = tiny_features(adapter.config)
    text = torch.randn(1, 77, adapter.config.text_width)
    other = tiny_features(adapter.config, seed=9).cls
    change = (adapter.personalization(text, features.cls) - adapter.personalization(text, other)).abs().max()
    assert change > 1e-3


def test_gated_attention_is_the_sum_of_equation_4_and_exact_at_its_ends():
    torch.manual_seed(0)
    q, text = torch.randn(3, 7, 16), torch.randn(3, 7, 16)
    p = (torch.randn(3, 4, 16), torch.randn(3, 4, 16))
    s = (torch.randn(3, 9, 16), torch.randn(3, 9, 16))
    a_p, a_s = attend(q, *p, 2), attend(q, *s, 2)

    def gated(gamma, strength=1.0):
        return gated_attention(q, text, p, s, weights=weights(gamma_tensor(gamma), strength, ()), heads=2)

    torch.testing.assert_close(gated(0.3, 0.8), text + 0.8 * (0.3 * a_p + 0.7 * a_s))
    assert torch.equal(gated(1.0), text + a_p)
    assert torch.equal(gated(0.0), text + a_s)
    assert torch.equal(gated(0.4, strength=0.0), text)
    per_sample = gated([0.0, 0.3, 1.0])
    for row, gamma in enumerate((0.0, 0.3, 1.0)):
        assert torch.equal(per_sample[row], gated(gamma)[row])


def test_gate_gives_alpha_to_images_and_one_minus_beta_to_video():
    gate = DynamicWeightGate(FlexIPConfig(alpha=0.8, beta=0.7))
    gamma = gate(torch.tensor([False, True]))
    assert gamma.shape == (2, 1, 1)
    torch.testing.assert_close(gamma.flatten(), torch.tensor([0.8, 0.3]))


def test_learnable_gate_starts_at_the_same_values_and_has_gradients():
    gate = DynamicWeightGate(FlexIPConfig(learnable_gate=True))
    gamma = gate(torch.tensor([False, True]))
    torch.testing.assert_close(gamma.flatten(), torch.tensor([0.9, 0.1]))
    gamma.sum().backward()
    assert gate.logits.grad.abs().min() > 0


def test_a_calibration_curve_has_straight_lines_between_its_values_and_none_changes_nothing():
    gamma = torch.tensor([0.0, 0.125, 0.25, 0.75, 1.0]).view(-1, 1, 1)
    p, s = weights(gamma, 1.0, ())
    assert torch.equal(p, gamma) and torch.equal(s, 1 - gamma)
    p, s = weights(gamma, 0.5, (0.0, 0.04, 0.1, 0.5, 1.0))
    wanted = torch.tensor([0.0, 0.02, 0.04, 0.5, 1.0])
    torch.testing.assert_close(p.flatten(), wanted / 2)
    torch.testing.assert_close(s.flatten(), (1 - wanted) / 2)


def test_a_dial_rises_from_zero_to_one_and_older_configs_have_none():
    config = tiny_config(dial=(0.0, 0.1, 1.0))
    assert FlexIPConfig.from_json(config.to_json()) == config and "0.1" in config.calibration_in_words
    older = {key: value for key, value in json.loads(tiny_config().to_json()).items() if key != "dial"}
    assert FlexIPConfig.from_json(json.dumps(older)) == tiny_config()
    for bad in ((0.0, 0.5), (0.1, 1.0), (0.0, 0.6, 0.4, 1.0), (0.0, float("nan"), 1.0)):
        with pytest.raises(FlexIPError, match="rise from 0 to 1"):
            tiny_config(dial=bad)


def test_a_config_names_its_adapters_class_and_no_other_class_takes_it():
    for kind in ADAPTERS:
        config = tiny_config(kind=kind.kind)
        assert adapter_class(config) is kind
        for other in ADAPTERS:
            if other is not kind:
                with pytest.raises(FlexIPError, match=f"adapter kind is '{kind.kind}'; expected {other.kind}"):
                    other(config)
    with pytest.raises(
        FlexIPError, match="adapter kind is 'flexop'; expected one of flexip, ip-adapter, ip-adapter-plus"
    ):
        adapter_class(tiny_config(kind="flexop"))


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan"), [], [0.5, 2.0]])
def test_gamma_outside_zero_to_one_is_refused(bad):
    with pytest.raises(FlexIPError, match="γ is"):
        gamma_tensor(bad)


def test_null_features_are_a_learned_null_not_zero_tokens():
    adapter = tiny_adapter()
    null = adapter.null_features(1, torch.zeros(1, 9, 40))
    assert null.patches.abs().max() == 0 and null.cls.abs().max() == 0
    assert adapter.preservation(null).abs().max() > 0


def test_config_survives_json_and_names_what_is_wrong():
    config = tiny_config(alpha=0.75)
    assert FlexIPConfig.from_json(config.to_json()) == config
    with pytest.raises(FlexIPError, match="alpha is 1.5"):
        FlexIPConfig(alpha=1.5)
    with pytest.raises(FlexIPError, match="unknown fields \\['surprise'\\]"):
        FlexIPConfig.from_json(config.to_json().replace('"alpha"', '"surprise"'))
    with pytest.raises(FlexIPError, match="not JSON"):
        FlexIPConfig.from_json("{")
