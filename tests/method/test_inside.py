"""Looking inside: the maps add up as softmax and Eq. 4 say, are kept small, and are averaged as documented."""

import pytest
import torch

from flexip_model.common.errors import FlexIPError
from flexip_model.method import gate
from flexip_model.method.adapters import ReferenceFeatures
from flexip_model.method.attention import attend, gated_attention
from flexip_model.method.inside.maps import (
    GROUPS,
    Attended,
    attention_weights,
    contribution,
    layer_maps,
    tokens_of,
)
from flexip_model.method.inside.record import LARGEST, AttentionRecord
from flexip_model.method.inside.retrieval import read_weights, retrieval_maps
from flexip_model.method.sites import SD15_SITES, choose_sites

from ..support.helpers import tiny_adapter, tiny_features

HEADS, WIDTH, GRID = 4, 32, (6, 5)
BRANCHES = ("preservation", "personalization", "text")


def drawn(rows=2, gamma=0.3, seed=0, text=77, references=1):
    """A layer's queries, keys and values: q, branches, and the pairs that `gated_attention` takes."""
    torch.manual_seed(seed)
    q = torch.randn(rows, GRID[0] * GRID[1], WIDTH)
    pairs = [(torch.randn(rows, n, WIDTH), torch.randn(rows, n, WIDTH)) for n in (17 * references, text, text)]
    weights = gate.weights(gate.gamma_tensor(gamma), 1.5, ())
    branches = {
        name: Attended(*pair, weight) for name, pair, weight in zip(BRANCHES, pairs, (*weights, None), strict=True)
    }
    return q, branches, pairs, weights


def test_the_groups_of_a_branch_are_all_of_its_tokens_once():
    adapter = tiny_adapter()
    for branch, tokens in (("preservation", 17), ("preservation", 51), ("personalization", 154), ("text", 77)):
        groups = tokens_of(branch, tokens, adapter, adapter.preservation_tokens)
        assert sorted(torch.cat(list(groups.values())).tolist()) == list(range(tokens))
    assert tokens_of("preservation", 34, adapter, 17)["cls"].tolist() == [16, 33]
    assert tokens_of("text", 154, adapter, 17)["text_start"].tolist() == [0, 77]
    plain = tiny_adapter(kind="ip-adapter")
    assert tokens_of("preservation", 16, plain, plain.preservation_tokens)["cls"].numel() == 0


@pytest.mark.parametrize("gamma", [0.3, [0.2, 0.9]])
def test_attention_weights_of_a_branch_add_up_to_one_at_each_place(gamma):
    q, branches, _, _ = drawn(gamma=gamma)
    maps = layer_maps(q, branches, tiny_adapter(), heads=HEADS, grid=GRID, largest=32)
    assert maps.shape == (2, len(GROUPS), 2, *GRID) and maps.dtype == torch.float32
    for branch in BRANCHES:
        own = [number for number, of in enumerate(GROUPS.values()) if of == branch]
        torch.testing.assert_close(maps[0, own].sum(0), torch.ones(2, *GRID))


def test_contributions_of_all_groups_add_up_to_the_gated_attention():
    q, branches, pairs, weights = drawn(gamma=[0.2, 0.9])
    adapter, total = tiny_adapter(), torch.zeros_like(q)
    for branch, (k, v, weight, _) in branches.items():
        softmax = attention_weights(q, k, HEADS)
        parts = [contribution(softmax, v, tokens) for tokens in tokens_of(branch, k.shape[1], adapter, 17).values()]
        torch.testing.assert_close(sum(parts), attend(q, k, v, HEADS), atol=1e-5, rtol=1e-5)
        total += sum(parts) * (1 if weight is None else weight)
    text = attend(q, *pairs[2], HEADS)
    wanted = gated_attention(q, text, pairs[0], pairs[1], weights=weights, heads=HEADS)
    torch.testing.assert_close(total, wanted, atol=1e-5, rtol=1e-5)


def test_gamma_scales_the_contributions_as_equation_4_says_and_leaves_the_weights():
    adapter = tiny_adapter()

    def maps(gamma):
        return layer_maps(*drawn(gamma=gamma)[:2], adapter, heads=HEADS, grid=GRID, largest=32)

    low, high = maps(0.2), maps(0.8)
    torch.testing.assert_close(low[0], high[0])
    for name, factor in {"queries": 4.0, "cls": 4.0, "s": 0.25, "s_start": 0.25, "text": 1.0}.items():
        number = list(GROUPS).index(name)
        torch.testing.assert_close(high[1, number], factor * low[1, number])
        assert low[1, number].min() > 0


def test_a_branch_of_weight_zero_takes_no_part():
    record = AttentionRecord(tiny_adapter())
    q, branches, _, _ = drawn(gamma=1.0)
    record.begin_step()
    record.add(SD15_SITES[0], q, branches, heads=HEADS, grid=GRID, pictures=(0, 1))
    maps = record.mean()
    assert maps.missing == ("s", "s_start")
    assert maps.weights["s"].max() == 0 and maps.contributions["s"].max() == 0 and maps.weights["text"].min() > 0


def test_a_mask_on_the_text_is_the_layers():
    q, branches, _, _ = drawn(rows=1)
    mask = torch.zeros(1, 1, 1, 77)
    mask[..., 10:] = -1e9
    k, v, _, _ = branches["text"]
    softmax = attention_weights(q, k, HEADS, mask)
    assert softmax[..., 10:].max() == 0
    whole = contribution(softmax, v, torch.arange(77))
    torch.testing.assert_close(whole, attend(q, k[:, :10], v[:, :10], HEADS), atol=1e-5, rtol=1e-5)


def test_means_over_layers_and_steps():
    record = AttentionRecord(tiny_adapter())
    for step in range(3):
        record.begin_step()
        for site in SD15_SITES[:2]:
            q, branches, _, _ = drawn(seed=step)
            record.add(site, q, branches, heads=HEADS, grid=GRID, pictures=(0, 1))
    assert (record.steps, record.pictures) == (3, 2)
    wanted = torch.stack([record.at(step, SD15_SITES[0], 1) for step in (2, 3)]).mean(0)
    found = record.mean(SD15_SITES[:1], 2, 3)
    torch.testing.assert_close(found.weights["cls"][1], wanted[0, 1])
    torch.testing.assert_close(found.contributions["text"][1], wanted[1, 4])
    assert torch.equal(record.mean(first=2).weights["s"], record.mean(first=2, last=3).weights["s"])


def test_coarse_layers_are_brought_to_the_finest_grid_and_still_add_up():
    record = AttentionRecord(tiny_adapter())
    record.begin_step()
    torch.manual_seed(0)
    for site, grid in zip(SD15_SITES[:3], ((40, 48), (20, 24), (5, 6)), strict=True):
        _, branches, _, _ = drawn(rows=1)
        record.add(site, torch.randn(1, grid[0] * grid[1], WIDTH), branches, heads=HEADS, grid=grid, pictures=(0,))
    maps = record.mean()
    assert maps.weights["queries"].shape == (1, LARGEST, LARGEST)
    torch.testing.assert_close(maps.weights["queries"] + maps.weights["cls"], torch.ones(1, LARGEST, LARGEST))


def test_fifty_steps_at_512_pixels_stay_under_thirty_megabytes():
    record = AttentionRecord(tiny_adapter())
    record.begin_step()
    _, branches, _, _ = drawn(rows=1)
    for site in SD15_SITES:
        height, width = site.grid(64, 64)
        own = torch.zeros(1, height * width, 4)
        few = {name: Attended(of.k[..., :4], of.v[..., :4], of.weight) for name, of in branches.items()}
        record.add(site, own, few, heads=1, grid=(height, width), pictures=(0,))
    assert 0 < 50 * record.bytes < 30e6


def test_what_was_not_seen_is_named():
    record = AttentionRecord(tiny_adapter())
    with pytest.raises(FlexIPError, match="no step was seen"):
        record.mean()
    record.begin_step()
    with pytest.raises(FlexIPError, match="no attention was seen"):
        record.mean()
    q, branches, _, _ = drawn(rows=1)
    record.add(SD15_SITES[0], q, branches, heads=HEADS, grid=GRID, pictures=(0,))
    with pytest.raises(FlexIPError, match="nothing was seen of mid_block"):
        record.at(1, choose_sites("mid")[0])
    with pytest.raises(FlexIPError, match="steps 1 to 2 were asked for and 1"):
        record.mean(last=2)
    with pytest.raises(FlexIPError, match="expected whole pictures"):
        record.add(SD15_SITES[0], q[:, :20], branches, heads=HEADS, grid=(5, 4), pictures=(0,))


def test_sites_are_chosen_by_their_blocks():
    assert choose_sites("") == SD15_SITES
    assert [site.name for site in choose_sites("mid, down_blocks.0")] == [
        "down_blocks.0.attentions.0",
        "down_blocks.0.attentions.1",
        "mid_block.attentions.0",
    ]
    with pytest.raises(FlexIPError, match='no block "head"'):
        choose_sites("head")


def test_a_resampler_layers_weights_give_its_output_and_add_up_to_one():
    adapter, features = tiny_adapter(), tiny_features(tiny_adapter().config, batch=2)
    layer = adapter.resampler_queries.layers[0]["attention"]
    d = adapter.project_retrieval(features.patches)
    x = adapter.queries.expand(2, -1, -1)
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[1, 4:] = False
    weights, values = read_weights(layer, x, d, keep)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert weights[1, ..., 16 + 4 :].max() == 0
    out = layer.to_out((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, layer(x, d, keep), atol=1e-5, rtol=1e-5)


def test_the_resamplers_maps_leave_dropped_patches_black_and_the_tokens_as_they_were():
    adapter, features = tiny_adapter(), tiny_features(tiny_adapter().config)
    keep = torch.ones(1, 9, dtype=torch.bool)
    keep[0, 5:] = False
    before = adapter.preservation(features)
    maps = retrieval_maps(adapter, ReferenceFeatures(features.cls, features.patches, keep))
    assert set(maps) == {"queries", "cls"}
    for weights, contributions in maps.values():
        assert weights.shape == contributions.shape == (1, 9)
        assert weights[0, 5:].max() == 0 and contributions[0, 5:].max() == 0
        assert 0 < weights.sum() < 1 and contributions[0, :5].min() > 0
    assert torch.equal(adapter.preservation(features), before)
    assert not any(module._forward_pre_hooks for module in adapter.modules())
    assert retrieval_maps(tiny_adapter(kind="ip-adapter"), features) == {}
