"""The diffusers host: injecting, its exact ends, ejecting, and its refusals."""

import pytest
import torch

from flexip_model.common.errors import FlexIPError
from flexip_model.hosts.diffusers import Condition, inject
from flexip_model.method.gate import gamma_tensor

from ..support.helpers import tiny_adapter, tiny_features, tiny_unet


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(3)
    return torch.randn(2, 4, 16, 16), torch.tensor([400]), torch.randn(2, 77, 48)


def condition(adapter, text, gamma, strength=1.0):
    features = tiny_features(adapter.config, batch=2)
    s = adapter.personalization(text, features.cls)
    return Condition(adapter.preservation(features), s, gamma_tensor(gamma), strength)


def noise(unet, inputs):
    with torch.no_grad():
        return unet(inputs[0], inputs[1], inputs[2]).sample


def test_inject_then_eject_leaves_the_unet_identical(unet, inputs):
    processors, weights = dict(unet.attn_processors), {k: v.clone() for k, v in unet.state_dict().items()}
    base = noise(unet, inputs)
    adapter = tiny_adapter()
    host = inject(unet, adapter)
    host.condition = condition(adapter, inputs[2], 0.5)
    assert (noise(unet, inputs) - base).abs().max() > 1e-2
    host.eject()
    assert dict(unet.attn_processors) == processors
    assert all(torch.equal(v, weights[k]) for k, v in unet.state_dict().items())
    assert torch.equal(noise(unet, inputs), base)


def test_strength_zero_and_no_condition_are_exactly_the_unpatched_unet(unet, inputs):
    base = noise(unet, inputs)
    adapter = tiny_adapter()
    host = inject(unet, adapter)
    assert torch.equal(noise(unet, inputs), base)
    host.condition = condition(adapter, inputs[2], 0.5, strength=0.0)
    assert torch.equal(noise(unet, inputs), base)
    host.eject()


def test_the_ends_of_gamma_are_exactly_one_branch(unet, inputs):
    adapter = tiny_adapter()
    host = inject(unet, adapter)
    for gamma, keep in ((1.0, "preservation"), (0.0, "personalization")):
        host.condition = condition(adapter, inputs[2], gamma)
        both = noise(unet, inputs)
        alone = condition(adapter, inputs[2], gamma)
        setattr(alone, "personalization" if keep == "preservation" else "preservation", None)
        host.condition = alone
        assert torch.equal(noise(unet, inputs), both)
    host.eject()


def test_a_gamma_per_sample_equals_one_at_a_time(unet, inputs):
    adapter = tiny_adapter()
    host = inject(unet, adapter)
    host.condition = condition(adapter, inputs[2], [0.2, 0.9])
    together = noise(unet, inputs)
    for row, gamma in enumerate((0.2, 0.9)):
        host.condition = condition(adapter, inputs[2], gamma)
        torch.testing.assert_close(noise(unet, inputs)[row], together[row], atol=1e-5, rtol=0)
    host.eject()


def test_keys_and_values_are_projected_once_per_condition(unet, inputs):
    adapter = tiny_adapter()
    calls = []
    for name, module in adapter.named_modules():
        if name.endswith(("preservation", "personalization")) and ".attn2." in name:
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    host = inject(unet, adapter)
    host.condition = condition(adapter, inputs[2], 0.5)
    for _ in range(3):
        noise(unet, inputs)
    host.eject()
    assert len(calls) == len(set(calls)) == 32


def test_the_gates_weights_are_made_once_and_lie_where_the_unet_runs():
    made = Condition(None, None, gamma_tensor(0.25))
    there = made.weights((), torch.device("meta"))
    assert {weight.device.type for weight in there} == {"meta"} and made.weights((), torch.device("meta")) is there
    assert [float(weight) for weight in made.weights((), torch.device("cpu"))] == [0.25, 0.75]


def test_gradients_reach_both_branches_and_nothing_of_the_unet(unet, inputs):
    adapter = tiny_adapter().requires_grad_(True)
    host = inject(unet, adapter)
    host.condition = condition(adapter, inputs[2], 0.5)
    unet(inputs[0], inputs[1], inputs[2]).sample.square().mean().backward()
    host.eject()
    assert all(p.grad is None for p in unet.parameters())
    missing = [name for name, p in adapter.named_parameters() if p.grad is None]
    assert missing == []


def test_a_unet_of_other_widths_or_structure_is_refused_and_left_alone(unet):
    from diffusers import UNet2DConditionModel

    processors = dict(unet.attn_processors)
    with pytest.raises(FlexIPError, match="32 wide and the adapter 64"):
        inject(unet, tiny_adapter(channels=(64, 64, 96, 96)))
    assert dict(unet.attn_processors) == processors
    other = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=48,
    )
    with pytest.raises(FlexIPError, match="SD1.5's structure"):
        inject(other, tiny_adapter())
