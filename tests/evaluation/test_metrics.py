"""The metrics, each with its real model class at a tiny size."""

import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from flexip_model.common.errors import FlexIPError
from flexip_model.evaluation.metrics.definitions import DEFINITIONS, ROLES
from flexip_model.evaluation.metrics.judge import read_number
from flexip_model.evaluation.metrics.measure import MISSED, MISSED_REFERENCE, Item, Measure
from flexip_model.evaluation.metrics.segment import cut_out
from flexip_model.evaluation.metrics.weights import Weights
from flexip_model.files.safefile import load_tensors

from .tiny_judges import write_judges

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture(scope="module")
def measure(places):
    return Measure(Weights(places), list(DEFINITIONS), CPU)


def noise(seed: int, side: tuple[int, int] = (40, 36)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (*side, 3), np.uint8)).resize(side, Image.Resampling.BICUBIC)


def item(picture=1, reference=2, prompt="a red cup", name="cup"):
    return Item(noise(picture), noise(reference), f"reference {reference}", prompt, name)


def test_every_role_is_used_and_known():
    assert {role for d in DEFINITIONS.values() for role in d.roles} == set(ROLES)
    assert all(d.source and d.computed and d.low < d.high for d in DEFINITIONS.values())


def test_every_score_stands_with_its_models_hashes_and_what_they_see(measure):
    for metric, definition in DEFINITIONS.items():
        told = measure.identity(metric)
        assert set(told) == set(definition.roles)
        assert all(entry["name"] and len(entry["hash"]) == 16 and entry["preparation"] for entry in told.values())
    assert "mean" in measure.identity("dino-i-subject")["sam"]["preparation"]


def test_clip_scores_are_transformers_own_cosines(measure, places):
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(places["clip"]), CLIPProcessor.from_pretrained(places["clip"])
    one = item()
    inputs = processor(text=[one.prompt], images=[one.picture, one.reference], return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs)
    assert measure("clip-t", [one])[0].value == pytest.approx(
        float(found.image_embeds[0] @ found.text_embeds[0]), abs=1e-5
    )
    assert measure("clip-i", [one])[0].value == pytest.approx(
        float(found.image_embeds[0] @ found.image_embeds[1]), abs=1e-5
    )


def test_dino_reads_the_class_token(measure, places):
    from transformers import ViTImageProcessor, ViTModel

    model = ViTModel.from_pretrained(places["dino"], add_pooling_layer=False)
    pixels = ViTImageProcessor.from_pretrained(places["dino"])(images=[noise(1), noise(2)], return_tensors="pt")
    with torch.no_grad():
        a, b = model(**pixels).last_hidden_state[:, 0]
    wanted = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    assert measure("dino-i", [item()])[0].value == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("metric", ["clip-i", "dino-i"])
def test_a_copy_of_the_reference_scores_one(measure, metric):
    assert measure(metric, [item(2, 2)])[0].value == pytest.approx(1, abs=1e-5)


def test_a_batch_scores_as_its_pictures_alone(measure):
    items = [item(1), item(3, 2, "a very long prompt about a cup"), item(4, 5)]
    for metric in ("clip-t", "clip-i", "dino-i", "clip-iqa", "aesthetic"):
        together = [score.value for score in measure(metric, items)]
        alone = [measure(metric, [one])[0].value for one in items]
        assert together == pytest.approx(alone, abs=1e-5)
        assert len({round(value, 6) for value in alone}) == 3


def test_the_subject_alone_is_compared_where_it_is_found(measure, monkeypatch):
    """Box, mask and embeddings are the models' own; only the least score of a box is lowered for random weights."""
    from flexip_model.evaluation.metrics import segment

    measure.next_batch()
    measure._references.clear()
    monkeypatch.setattr(segment, "LEAST", 0.0)
    one = item(6, 6)
    box = measure.segmenter.find(one.picture, one.name)
    mask = measure.segmenter.mask(one.picture, box)
    assert mask.any() and not mask.all()
    for metric, family in (("dino-i-subject", measure.dino), ("clip-i-subject", measure.clip)):
        assert measure(metric, [one])[0].value == pytest.approx(1, abs=1e-5)
        other = item(6, 5)
        cuts = [cut_out(p, measure.segmenter.mask(p, measure.segmenter.find(p, "cup"))) for p in other[:2]]
        wanted = float((family.pictures(cuts[:1]) * family.pictures(cuts[1:])).sum())
        assert measure(metric, [other])[0].value == pytest.approx(wanted, abs=1e-5)
    measure.next_batch()
    measure._references.clear()


def test_a_missed_subject_counts_zero_and_says_so(measure, monkeypatch):
    from flexip_model.evaluation.metrics import segment

    measure.next_batch()
    measure._references.clear()
    monkeypatch.setattr(segment, "LEAST", 1.1)
    score = measure("clip-i-subject", [item(7, 8)])[0]
    assert math.isnan(score.value) and score.note == MISSED_REFERENCE
    measure._references["cut", "reference 8 cup"] = noise(8)
    score = measure("clip-i-subject", [item(7, 8)])[0]
    assert score == (0.0, MISSED)
    measure.next_batch()
    measure._references.clear()


def test_detector_and_sam_give_boxes_and_masks_in_the_picture(measure, monkeypatch):
    from flexip_model.evaluation.metrics import segment

    monkeypatch.setattr(segment, "LEAST", 0.0)
    picture = noise(9, (50, 30))
    left, top, right, bottom = measure.segmenter.find(picture, "Cup")
    assert 0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height
    assert measure.segmenter.mask(picture, (left, top, right, bottom)).shape == (picture.height, picture.width)


def test_cut_out_is_a_white_square_around_the_mask():
    picture = Image.new("RGB", (20, 10), (10, 20, 30))
    mask = np.zeros((10, 20), bool)
    mask[2:5, 4:10] = True
    mask[3, 6] = False
    found = cut_out(picture, mask)
    assert found.size == (6, 6)
    assert found.getpixel((0, 1)) == (10, 20, 30)
    assert found.getpixel((2, 2)) == (255, 255, 255) == found.getpixel((0, 0))


def test_clip_iqa_has_no_position_table_and_any_size(measure):
    scores = [measure("clip-iqa", [item()._replace(picture=noise(1, side))])[0].value for side in ((64, 64), (96, 130))]
    assert all(0 < score < 1 for score in scores)
    assert float(measure.iqa.model.visual.attnpool.positional_embedding.abs().max()) == 0


def test_aesthetic_is_the_product_of_its_layers(measure):
    embedding = measure.clip_l.pictures([noise(1)])
    (w1, b1), (w2, b2) = measure.aesthetic.layers
    wanted = float(((embedding @ w1.T + b1) @ w2.T + b2)[0, 0])
    assert measure("aesthetic", [item(1)])[0].value == pytest.approx(wanted, abs=1e-4)


def test_image_reward_reads_the_published_names(measure, places):
    """The picture tower computed by hand from the file's own tensors; then the text tower, on what it saw."""
    t = {k.removeprefix("blip."): v for k, v in load_tensors(places["image-reward"] / "model.safetensors").items()}
    v = {k.removeprefix("visual_encoder."): x for k, x in t.items() if k.startswith("visual_encoder.")}
    reward, picture = measure.reward, noise(1)

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], v[f"{name}.weight"], v[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, v[f"{name}.weight"], v[f"{name}.bias"])

    pixels = reward.prepare(picture)[None]
    assert pixels.shape == (1, 3, 32, 32)
    x = F.conv2d(pixels, v["patch_embed.proj.weight"], v["patch_embed.proj.bias"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([v["cls_token"], x], 1) + v["pos_embed"]
    q, k, u = linear(norm(x, "blocks.0.norm1"), "blocks.0.attn.qkv").chunk(3, -1)
    x = x + linear(F.scaled_dot_product_attention(q, k, u), "blocks.0.attn.proj")
    x = x + linear(F.gelu(linear(norm(x, "blocks.0.norm2"), "blocks.0.mlp.fc1")), "blocks.0.mlp.fc2")
    assert torch.allclose(reward.vision(pixels).last_hidden_state, norm(x, "norm"), atol=1e-4)
    alone = measure("image-reward", [item(1)])[0].value
    assert measure("image-reward", [item(1), item(3, prompt="hat")])[0].value == pytest.approx(alone, abs=1e-4)
    others = [measure("image-reward", [one])[0].value for one in (item(3), item(1, prompt="a hat"))]
    assert len({round(value, 4) for value in (alone, *others)}) == 3


def test_image_reward_s_head_is_standardized_as_published(measure, monkeypatch):
    monkeypatch.setattr(measure.reward, "head", [(torch.zeros(1, 64), torch.tensor([1.2005071272359283]))])
    assert measure("image-reward", [item(1)])[0].value == pytest.approx(1, abs=1e-5)


def test_the_judge_answers_or_is_marked(measure):
    score = measure("match", [item()])[0]
    assert 0 <= score.value <= 100 or (math.isnan(score.value) and score.note.startswith("the judge answered"))
    assert measure("match", [item()])[0].note == score.note


@pytest.mark.parametrize(
    ("answer", "number"),
    [("87", 87), ("Score: 3", 3), ("100/100", 100), ("850", None), ("7.5", None), ("good", None), ("", None)],
)
def test_numbers_are_read_from_answers(answer, number):
    assert read_number(answer) == number


def test_the_pack_s_own_encoders_score_pictures_and_no_text():
    from ..support.paths import SHIPPED

    places = {
        "clip": SHIPPED / "encoders" / "clip_vision.safetensors",
        "dino": SHIPPED / "encoders" / "dinov2.safetensors",
    }
    own = Measure(Weights(places), ["clip-t", "clip-i", "dino-i"], CPU)
    assert own.metrics == ["clip-i", "dino-i"] and "reads no text" in own.lacking["clip-t"][0]
    assert own("dino-i", [item(2, 2)])[0].value == pytest.approx(1, abs=1e-4)
    assert "the pack's encoder" in own.identity("clip-i")["clip"]["name"]


def test_missing_weights_are_told_with_source_and_folder(tmp_path, places):
    measure = Measure(Weights({"clip": tmp_path / "none"}), ["clip-t", "dino-i"], CPU)
    assert measure.metrics == []
    told = measure.lacking["clip-t"][0] + measure.lacking["dino-i"][0]
    for part in ("none does not exist", "openai/clip-vit-base-patch32", "model.safetensors", "--weights dino=FOLDER"):
        assert part in told
    with pytest.raises(FlexIPError, match="no weights 'clap'"):
        Weights({"clap": tmp_path})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlexIPError, match="has no .safetensors file"):
        Measure(Weights({"dino": tmp_path / "empty"}), ["dino-i"], CPU).identity("dino-i")
    with pytest.raises(FlexIPError, match="cannot be loaded as CLIPModel"):
        Measure(Weights({"clip": places["clip-rn50"]}), ["clip-i"], CPU).identity("clip-i")
    shutil.copytree(places["dino"], tmp_path / "cut")
    cut = load_tensors(tmp_path / "cut" / "model.safetensors")
    cut.pop("layernorm.weight")
    save_file(cut, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FlexIPError, match=r"lacks weights of ViTModel, first layernorm\.weight"):
        Measure(Weights({"dino": tmp_path / "cut"}), ["dino-i"], CPU).identity("dino-i")
    with pytest.raises(FlexIPError, match="does not hold Image Reward"):
        _ = Measure(Weights({"image-reward": places["clip"]}), ["image-reward"], CPU).reward
    with pytest.raises(FlexIPError, match="ResNet CLIP"):
        _ = Measure(Weights({"clip-rn50": tmp_path / "empty"}), ["clip-iqa"], CPU).iqa
    wrong = Weights({"clip-l": places["clip-l"], "aesthetic": next(places["dino"].glob("*.safetensors"))})
    with pytest.raises(FlexIPError, match="no aesthetic predictor"):
        _ = Measure(wrong, ["aesthetic"], CPU).aesthetic


def test_places_come_from_a_config_and_flags_go_over_it(tmp_path):
    config = tmp_path / "judges.yaml"
    config.write_text("weights:\n  clip: here\n  dino: there\n")
    weights = Weights.read(config, ["dino=elsewhere"])
    assert weights.places["clip"] == tmp_path / "here" and str(weights.places["dino"]) == "elsewhere"
    with pytest.raises(FlexIPError, match="expected ROLE=FOLDER"):
        Weights.read(None, ["dino"])
    config.write_text("clip: here\n")
    with pytest.raises(FlexIPError, match="of another form"):
        Weights.read(config, [])
