"""Encode FlexIP Reference: which tokens ride on which prompt, and which encoders may make them."""

import dataclasses
import importlib

import pytest
import torch

from flexip_model.images.preprocess import CROPS
from flexip_model.method.adapters import FlexIPAdapter, create_adapter

from ..support.comfy_rig import prompt
from ..support.helpers import tiny_adapter, tiny_config


def test_entries_are_kept_and_carry_their_own_s(rig):
    """Areas, ranges and other keys stay, the input is not changed, S is made from each entry's own text."""
    text, longer = rig.text(77, 1), rig.text(154, 2)
    mine = {"area": (8, 8, 0, 0), "start_percent": 0.2, "model_conds": {"other": "kept"}}
    positive = [[text, mine], [longer, {"pooled_output": None}], [None, {"strength": 0.5}]]
    out, _ = rig.encode(positive, positive)
    assert set(mine["model_conds"]) == {"other"} and len(positive[0]) == 2
    assert [entry[0] is given[0] for entry, given in zip(out, positive, strict=True)] == [True] * 3
    assert out[0][1]["area"] == (8, 8, 0, 0) and out[0][1]["model_conds"]["other"] == "kept"
    adapter, features = rig.adapter.adapter, rig.features()
    for entry, source in ((out[0], text), (out[1], longer)):
        wanted = adapter.personalization(source, features.cls)
        assert torch.equal(entry[1]["model_conds"][rig.adapter.s_key].cond, wanted)
        assert torch.equal(entry[1]["model_conds"][rig.adapter.p_key].cond, adapter.preservation(features))
    assert rig.adapter.s_key not in out[2][1]["model_conds"]
    with pytest.raises(ValueError, match="the prompt's text is 2048 wide"):
        rig.encode([[torch.randn(1, 77, 2048), {}]], positive)


def test_the_negative_prompt_carries_the_null_subject(rig):
    positive, negative = rig.prompts()
    _, out = rig.encode(positive, negative)
    adapter = rig.adapter.adapter
    null = adapter.null_features(1, rig.features().patches)
    conds = out[0][1]["model_conds"]
    assert torch.equal(conds[rig.adapter.p_key].cond, adapter.preservation(null))
    assert torch.equal(conds[rig.adapter.s_key].cond, adapter.personalization(negative[0][0], null.cls))


@pytest.mark.promise(14, seed=0)
def test_several_references_are_used_together(rig):
    """The same picture three times is that picture; different ones are neither alone."""
    one, other = rig.features(1, seed=1), rig.features(1, seed=8)
    triple = type(one)(one.cls.repeat(3, 1), one.patches.repeat(3, 1, 1))
    both = type(one)(torch.cat([one.cls, other.cls]), torch.cat([one.patches, other.patches]))
    model, prompts = rig.apply(0.5), rig.prompts()

    def noise(features):
        return rig.predict(model, *rig.encode(*prompts, features))[0]

    assert (noise(triple) - noise(one)).abs().max() <= 1e-5
    assert (noise(both) - noise(one)).abs().max() > 1e-3 < (noise(both) - noise(other)).abs().max()
    swapped = type(one)(both.cls.flip(0), both.patches.flip(0))
    assert (noise(both) - noise(swapped)).abs().max() <= 1e-5


@pytest.mark.promise(43)
def test_a_batch_of_references_equals_each_by_itself(pack, demo, figures):
    encode = importlib.import_module(f"{pack.__name__}.nodes.encode").encode_features
    look = demo[3].encoders.look
    images, masks = torch.rand(3, 40, 56, 3), torch.zeros(3, 40, 56)
    masks[0] = 1
    masks[1:, 10:30, 20:40] = 1
    for crop in CROPS:
        together, _ = encode(demo[3], look(images, masks, crop), FlexIPAdapter)
        for i in range(3):
            alone, _ = encode(demo[3], look(images[i : i + 1], masks[i : i + 1], crop), FlexIPAdapter)
            apart = max(float((a[i] - b[0]).abs().max()) for a, b in zip(together[:2], alone[:2], strict=True))
            figures.worst(43, apart, "difference of the features")
            assert apart <= 1e-5


@pytest.mark.promise(34)
def test_a_new_prompt_encodes_the_picture_no_second_time(pack, nodes, demo, monkeypatch):
    encoder, passes = importlib.import_module(f"{pack.__name__}.flexip_model.encoders").ClipEncoder, []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda self, *a, **k: passes.append(1) or forward(self, *a, **k))
    _, clip, _, encoders, adapter, example = demo

    def run(text, image):
        return (
            nodes["FlexIPEncodeReference"]
            .execute(encoders, adapter, image, prompt(clip, text), prompt(clip, ""), "pad")
            .args[2]
        )

    first = run("a cat", example)
    assert torch.equal(run("a dog", example).preservation, first.preservation) and len(passes) == 1
    other = run("a dog", 1 - example)
    assert not torch.equal(other.preservation, first.preservation) and len(passes) == 2
    for index in range(20):
        run("a cat", torch.full((1, 30, 30, 3), index / 20))
    assert len(encoders.recent) <= 8


def test_a_picture_is_prepared_once_per_encode(pack, nodes, demo, monkeypatch):
    pair, pictures = importlib.import_module(f"{pack.__name__}.flexip_model.encoders.pair"), []
    prepare = pair.prepare
    monkeypatch.setattr(pair, "prepare", lambda images, *given: pictures.append(len(images)) or prepare(images, *given))
    _, clip, _, encoders, adapter, _ = demo
    batch = torch.rand(2, 50, 40, 3, generator=torch.Generator().manual_seed(5))
    nodes["FlexIPEncodeReference"].execute(encoders, adapter, batch, prompt(clip, "x"), prompt(clip, ""), "center")
    assert pictures == [2]


@pytest.mark.promise(8)
def test_encoders_that_do_not_fit_are_refused(nodes, demo, rig):
    _, clip, _, encoders, _, example = demo
    wide = tiny_adapter(clip_width=64)
    other = rig.with_tensors(wide.state_dict(), wide.config).adapter
    with pytest.raises(ValueError, match="load the encoders that the adapter was trained with"):
        nodes["FlexIPEncodeReference"].execute(encoders, other, example, prompt(clip, "x"), prompt(clip, ""), "center")


def test_other_weights_of_the_right_sizes_are_told(nodes, demo, caplog):
    _, clip, _, encoders, adapter, example = demo

    def encode(info):
        other = dataclasses.replace(adapter, info=info)
        caplog.clear()
        nodes["FlexIPEncodeReference"].execute(encoders, other, example, prompt(clip, "x"), prompt(clip, ""), "center")
        return [record.message for record in caplog.records if "weights of the encoder" in record.message]

    assert encode(adapter.info) == []
    told = encode(
        dataclasses.replace(
            adapter.info,
            encoders={
                "clip": {"name": "another CLIP", "hash": "0123456789abcdef"},
                "retrieval": {"name": "unknown", "hash": ""},
            },
        )
    )
    assert len(told) == 1 and "another CLIP (0123456789abcdef)" in told[0]


def test_the_crop_is_as_trained_unless_one_is_chosen(nodes, demo, caplog):
    _, clip, _, encoders, adapter, _ = demo
    wide = torch.rand(1, 40, 90, 3, generator=torch.Generator().manual_seed(3))
    side = torch.zeros(1, 40, 90)
    side[:, 10:30, 70:85] = 1
    choice = next(i for i in nodes["FlexIPEncodeReference"].define_schema().inputs if i.id == "crop")
    assert (choice.options, choice.default) == (["as trained", *CROPS], "as trained")

    def seen(crop, recorded=None, mask=None):
        training = {**adapter.info.training, **({"references": recorded} if recorded else {})}
        made = dataclasses.replace(adapter, info=dataclasses.replace(adapter.info, training=training))
        caplog.clear()
        with caplog.at_level("INFO"):
            given = (encoders, made, wide, prompt(clip, "x"), prompt(clip, ""), crop, mask)
            return nodes["FlexIPEncodeReference"].execute(*given).args[2].seen

    assert torch.equal(seen("as trained"), seen("center"))
    seen("as trained")
    assert "does not say how its references were cropped" in caplog.text
    assert torch.equal(seen("as trained", {"crop": "pad", "white": 0.5}), seen("pad")) and not caplog.text
    assert torch.equal(seen("as trained", {"crop": "subject", "white": 0.5}), seen("pad"))
    assert torch.equal(seen("as trained", {"crop": "subject", "white": 0.5}, side), seen("subject", mask=side))
    followed = seen("as trained", {"crop": "center", "white": 0.5}, side)  # "center" alone would miss the subject
    assert (followed < 0.95).any()
    seen("as trained", {"crop": "center", "white": 0.0}, side)
    assert "was trained without masks" in caplog.text
    assert torch.equal(seen("center", {"crop": "pad", "white": 0.5}), seen("center"))


@pytest.mark.parametrize("kind", ["ip-adapter", "ip-adapter-plus"])
def test_an_imported_adapter_through_the_nodes_needs_clip_alone(pack, nodes, demo, rig, kind):
    model, clip, _, encoders, _, example = demo
    torch.manual_seed(7)
    config = tiny_config(kind=kind, retrieval_width=encoders.encoders.clip.hidden_width)
    adapter = rig.with_tensors(create_adapter(config).state_dict(), config).adapter
    wires = importlib.import_module(f"{pack.__name__}.nodes.wires")
    encoders_module = importlib.import_module(f"{pack.__name__}.flexip_model.encoders")
    alone = wires.manage_encoders(encoders_module.Encoders(encoders.encoders.clip, None))
    with torch.inference_mode():
        positive, negative, embeds = (
            nodes["FlexIPEncodeReference"]
            .execute(alone, adapter, example, prompt(clip, "a cat"), prompt(clip, ""), "center")
            .args
        )
        assert embeds.preservation.shape[1] == config.queries and adapter.s_key not in positive[0][1]["model_conds"]
        patched = nodes["FlexIPApply"].execute(model, adapter, 1.0, 1.0, 0.0, 1.0).args[0]
        change = rig.predict(patched, positive, negative)[0] - rig.predict(model, positive, negative)[0]
    assert bool(torch.isfinite(change).all()) and change.abs().max() > 1e-3
