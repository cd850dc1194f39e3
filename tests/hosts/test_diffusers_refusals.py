"""The diffusers host acts or says so: processors that others set, several adapters, dtypes, batches, compiling."""

import functools

import pytest
import torch

from flexip_model.common.errors import FlexIPError
from flexip_model.hosts.diffusers import Condition, GatedAttnProcessor, inject
from flexip_model.method.gate import gamma_tensor
from flexip_model.method.sites import SD15_SITES

from ..support.helpers import tiny_adapter, tiny_features, tiny_unet

torch.manual_seed(3)
NOISY, STEP, TEXT = torch.randn(2, 4, 16, 16), torch.tensor([400]), torch.randn(2, 77, 48)


@pytest.fixture
def unet():
    return tiny_unet()


def tokens(adapter, rows=slice(None)):
    features = tiny_features(adapter.config, batch=2)
    return adapter.preservation(features)[rows], adapter.personalization(TEXT, features.cls)[rows]


def condition(adapter, gamma=0.5, strength=1.0, rows=slice(None)):
    return Condition(*tokens(adapter, rows), gamma_tensor(gamma), strength)


def noise(unet, rows=slice(None), dtype=torch.float32, **more):
    with torch.no_grad():
        return unet(NOISY[rows].to(dtype), STEP, encoder_hidden_states=TEXT[rows].to(dtype), **more).sample


@functools.cache
def wanted(gamma=0.5):
    unet, adapter = tiny_unet(), tiny_adapter()
    inject(unet, adapter).condition = condition(adapter, gamma)
    return noise(unet)


def site(unet, number=0):
    return unet.get_submodule(SD15_SITES[number].diffusers)


def plain(unet):
    from diffusers.models.attention_processor import AttnProcessor2_0

    unet.set_attn_processor(AttnProcessor2_0())


def one_layer(unet):
    site(unet, 3).set_attention_slice(2)


REPLACE = {
    "slices": (lambda unet: unet.set_attention_slice("auto"), "16 of its 16 .* SlicedAttnProcessor"),
    "fused": (lambda unet: unet.fuse_qkv_projections(), "16 of its 16 .* FusedAttnProcessor2_0"),
    "plain": (plain, "16 of its 16 .* AttnProcessor2_0"),
    "one": (one_layer, "1 of its 16 .* SlicedAttnProcessor"),
}


@pytest.mark.parametrize("how", REPLACE)
def test_replaced_processors_are_told_when_they_would_be_needed_and_eject_leaves_them(unet, how):
    replace, words = REPLACE[how]
    adapter, before = tiny_adapter(), dict(unet.attn_processors)
    host = inject(unet, adapter)
    host.condition = condition(adapter)
    replace(unet)
    with pytest.raises(FlexIPError, match=f"{words}.*before inject, or call eject and inject again"):
        noise(unet)
    theirs = dict(unet.attn_processors)
    host.condition = None
    noise(unet)
    host.eject()
    for key, processor in unet.attn_processors.items():
        assert processor is (before if isinstance(theirs[key], GatedAttnProcessor) else theirs)[key]
    noise(unet)
    inject(unet, adapter).condition = condition(adapter)
    torch.testing.assert_close(noise(unet), wanted(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", ["slices", "fused"])
def test_attention_that_was_sliced_or_fused_before_gives_the_same_and_comes_back(unet, how):
    REPLACE[how][0](unet)
    adapter, before, base = tiny_adapter(), dict(unet.attn_processors), noise(unet)
    host = inject(unet, adapter)
    assert torch.equal(noise(unet), base)
    host.condition = condition(adapter, strength=0.0)
    assert torch.equal(noise(unet), base)
    host.condition = condition(adapter)
    torch.testing.assert_close(noise(unet), wanted(), atol=1e-5, rtol=0)
    host.eject()
    assert dict(unet.attn_processors) == before


def test_processors_that_fusing_kept_over_an_eject_are_no_ones_adapter(unet):
    adapter, before = tiny_adapter(), dict(unet.attn_processors)
    base, host = noise(unet), inject(unet, adapter)
    host.condition = condition(adapter)
    unet.fuse_qkv_projections()
    host.eject()
    unet.unfuse_qkv_projections()
    assert torch.equal(noise(unet), base)
    again = inject(unet, adapter)
    again.condition = condition(adapter)
    assert torch.equal(noise(unet), wanted())
    again.eject()
    assert dict(unet.attn_processors) == before


def test_an_ip_adapter_at_the_same_layers_is_refused_and_stays(unet):
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    for number in (0, 1):
        site(unet, number).set_processor(IPAdapterAttnProcessor2_0(32, 48, num_tokens=(4,)))
    before = dict(unet.attn_processors)
    with pytest.raises(FlexIPError, match="IPAdapterAttnProcessor2_0 sits at 2 .*unload_ip_adapter"):
        inject(unet, tiny_adapter())
    assert dict(unet.attn_processors) == before


@pytest.mark.parametrize("last", [False, True])
def test_two_adapters_in_one_unet_add_up_and_go_in_any_order(unet, last):
    adapter, before, base = tiny_adapter(), dict(unet.attn_processors), noise(unet)
    hosts = [inject(unet, adapter), inject(unet, adapter)]
    for host, gamma in zip(hosts, (1.0, 0.0), strict=True):
        host.condition = condition(adapter, gamma, strength=0.5)
    torch.testing.assert_close(noise(unet), wanted(), atol=1e-5, rtol=0)
    other = hosts.pop() if last else hosts.pop(0)
    other.eject()
    hosts[0].condition = condition(adapter)
    assert torch.equal(noise(unet), wanted())
    hosts[0].condition = None
    assert torch.equal(noise(unet), base)
    hosts[0].eject()
    assert dict(unet.attn_processors) == before


def test_an_ejected_host_takes_no_condition(unet):
    adapter = tiny_adapter()
    host = inject(unet, adapter)
    host.eject()
    with pytest.raises(FlexIPError, match="ejected.*inject the adapter again"):
        host.condition = condition(adapter)


@pytest.mark.parametrize(
    ("of_unet", "of_adapter", "of_tokens"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.float64, torch.bfloat16),
    ],
)
def test_unet_adapter_and_tokens_may_differ_in_dtype(unet, of_unet, of_adapter, of_tokens):
    adapter = tiny_adapter()
    p, s = (t.to(of_tokens) for t in tokens(adapter))
    host = inject(unet, adapter.to(of_adapter))
    host.condition = Condition(p, s, gamma_tensor(0.5))
    unet.to(of_unet)
    made = noise(unet, dtype=of_unet)
    assert made.dtype == of_unet
    torch.testing.assert_close(made.float(), wanted(), atol=0.05, rtol=0)
    unet.to(torch.float32)  # one condition goes on when the UNet's dtype changes
    torch.testing.assert_close(noise(unet), wanted(), atol=0.05, rtol=0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_adapter_and_tokens_may_be_on_another_device(unet, device):
    """torch's meta device has shapes alone; attention there takes no tensors of the CPU."""
    adapter, seen = tiny_adapter(), []
    made = condition(adapter)
    adapter.to(device).site(SD15_SITES[0]).preservation.register_forward_pre_hook(lambda _, given: seen.extend(given))
    inject(unet.to("meta"), adapter).condition = made
    with torch.no_grad():
        assert unet(NOISY.to("meta"), STEP.to("meta"), TEXT.to("meta")).sample.shape == NOISY.shape
    assert [one.device.type for one in seen] == [device]


def test_under_autocast_gradients_are_those_of_the_branches_alone():
    adapter, found = tiny_adapter().requires_grad_(True), []
    for through in (True, False):
        p = tokens(tiny_adapter())[0].bfloat16().requires_grad_(True)
        made, total = Condition(p, None, gamma_tensor(0.5)), torch.zeros(())
        with torch.autocast("cpu", torch.bfloat16):
            for one in SD15_SITES:
                branches = adapter.site(one)
                k, v = made.project(branches, p)[0] if through else branches.preservation(p)
                assert k.dtype == torch.bfloat16
                total = total + (k * k + v).sum()
        total.backward()
        found.append(p.grad)
    assert torch.equal(*found)


def test_one_of_a_kind_serves_the_whole_batch(unet):
    adapter = tiny_adapter()
    host = inject(unet, adapter)
    p, s = tokens(adapter, slice(0, 1))
    host.condition = Condition(p, s, gamma_tensor(0.5))
    one = noise(unet)
    host.condition = Condition(p.expand(2, -1, -1), s.expand(2, -1, -1), gamma_tensor([0.5, 0.5]))
    torch.testing.assert_close(noise(unet), one, atol=1e-5, rtol=0)


def test_another_batch_is_told_and_a_new_condition_goes_on(unet):
    adapter = tiny_adapter()
    host, row = inject(unet, adapter), slice(1, 2)
    host.condition = condition(adapter)
    words = r"2 \(preservation tokens\), 2 \(personalization tokens\), 1 \(γ\) and the UNet runs a batch of 1.*guidance"
    with pytest.raises(FlexIPError, match=words):
        noise(unet, row)
    with pytest.raises(FlexIPError, match="batch of 1"), torch.no_grad():
        unet(sample=NOISY[row], timestep=STEP, encoder_hidden_states=TEXT[row])
    host.condition = condition(adapter, rows=row)
    torch.testing.assert_close(noise(unet, row), wanted()[row], atol=1e-5, rtol=0)
    host.condition = condition(adapter, gamma=[0.1, 0.2, 0.3])
    with pytest.raises(FlexIPError, match=r"3 \(γ\) and the UNet runs a batch of 2"):
        noise(unet)


def test_tokens_and_gammas_of_another_form_are_told(unet):
    adapter = tiny_adapter()
    host, (p, s), gamma = inject(unet, adapter), tokens(adapter), gamma_tensor(0.5)
    for wrong, words in (
        (Condition(p, s, 0.5), "γ is 0.5; expected"),
        (Condition(p, s, torch.tensor([0.2, 0.5])), r"γ is of shape \(2,\).*gamma_tensor"),
        (Condition(p[0], s, gamma), r"preservation tokens are of shape \(17, 48\)"),
        (Condition(p, s[..., :40], gamma), r"personalization tokens are of shape \(2, 77, 40\); .* 48\)"),
    ):
        host.condition = wrong
        with pytest.raises(FlexIPError, match=words):
            noise(unet)
    host.eject()
    host = inject(unet, tiny_adapter(kind="ip-adapter-plus"))
    host.condition = Condition(p, s, gamma)
    with pytest.raises(FlexIPError, match="kind ip-adapter-plus does not read"):
        noise(unet)


def test_a_condition_follows_its_tokens_its_gamma_and_the_adapter(unet):
    first, second = tiny_adapter(), tiny_adapter(1, dial=(0.0, 0.9, 1.0))
    shared = condition(first)
    hosts = [inject(unet, first), inject(tiny_unet(), second)]
    found = []
    for host in hosts:
        host.condition = shared
        found.append(noise(host.unet))
        fresh = tiny_unet()
        inject(fresh, host.adapter).condition = condition(first)
        assert torch.equal(found[-1], noise(fresh))
    shared.preservation, shared.gamma = -shared.preservation, gamma_tensor(1.0)
    fresh = tiny_unet()
    inject(fresh, first).condition = Condition(shared.preservation, shared.personalization, gamma_tensor(1.0))
    assert torch.equal(noise(unet), noise(fresh))


def test_a_masked_prompt_is_as_a_shorter_one(unet):
    adapter = tiny_adapter()
    inject(unet, adapter).condition = condition(adapter)
    keep = (torch.arange(77) < 37).expand(2, -1)
    masked = noise(unet, encoder_attention_mask=keep)
    with torch.no_grad():
        shorter = unet(NOISY, STEP, TEXT[:, :37]).sample
    torch.testing.assert_close(masked, shorter, atol=1e-5, rtol=0)
    assert (masked - noise(unet)).abs().max() > 1e-3


def test_gradient_checkpointing_gives_the_same_gradients(unet):
    found = []
    for saving in (False, True):
        adapter = tiny_adapter(dial=(0.0, 0.2, 1.0)).requires_grad_(True)
        if saving:
            unet.train().enable_gradient_checkpointing()
        host = inject(unet, adapter)
        host.condition = condition(adapter)
        unet(NOISY, STEP, TEXT).sample.square().mean().backward()
        host.eject()
        found.append({name: p.grad for name, p in adapter.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 64
    assert all(torch.allclose(grad, found[1][name], atol=1e-6) for name, grad in found[0].items())


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_unet_acts_for_each_condition_and_says_where_it_cannot(unet, whole):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    adapter = tiny_adapter()
    host = inject(unet, adapter)
    call = unet
    if whole:
        call = torch.compile(unet, backend="eager", fullgraph=True)
    else:
        unet.compile_repeated_blocks(backend="eager", fullgraph=True)
    for gamma in (0.5, 1.0):
        host.condition = condition(adapter, gamma)
        for _ in range(2):
            torch.testing.assert_close(noise(call), wanted(gamma), atol=1e-5, rtol=0)
    # A graph for each width of layer, or for the whole UNet and for what is made before it: not one for each site.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    # A UNet that is compiled as a whole traces the refusal, and torch quotes it.
    with pytest.raises(torch._dynamo.exc.Unsupported if whole else FlexIPError, match="a batch of 1"):
        noise(call, slice(0, 1))
    unet.set_attention_slice("auto")
    with pytest.raises(torch._dynamo.exc.Unsupported if whole else FlexIPError, match="gone from 16 of its 16"):
        noise(call)
    host.condition = None
    noise(call)
