"""Scores in the graph, and the search for γ: the libraries' numbers, KSampler's pictures, and nothing left behind."""

import copy
import importlib

import pytest
import torch
from torch.nn import functional as F

from flexip_model.images.preprocess import normalize, prepare

from ..support.comfy_rig import prompt
from ..support.encoder_files import CLIP_SPEC, DINO_SPEC, HALF, save

SAMPLER = {"steps": 2, "cfg": 5.0, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1.0}


@pytest.fixture
def search(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.scores.search")


@pytest.fixture
def graph(nodes, demo):
    """The parts that a search is given; the reference is the picture at γ 1."""
    model, clip, vae, encoders, adapter, example = demo
    with torch.inference_mode():
        positive, negative, _ = (
            nodes["FlexIPEncodeReference"]
            .execute(encoders, adapter, example, prompt(clip, "a cat"), prompt(clip, ""), "center")
            .args
        )

    parts = {
        "model": model,
        "positive": positive,
        "negative": negative,
        "latent_image": {"samples": torch.zeros(1, 4, 8, 8)},
        "vae": vae,
        "adapter": adapter,
        "encoders": encoders,
    }
    asked = {"score": "DINO-I", "tolerance": 0.0, "most": 4, "seed": 3, **SAMPLER}

    class Graph:
        @classmethod
        @torch.inference_mode()
        def find(cls, **changes):
            return nodes["FlexIPFindGamma"].execute(**parts | asked | changes).args

        @classmethod
        @torch.inference_mode()
        def draw(cls, gamma, latent=None):
            """The same by the nodes that the search stands for."""
            comfy_nodes = importlib.import_module("nodes")
            patched = nodes["FlexIPApply"].execute(model, adapter, gamma, 1.0, 0.0, 1.0).args[0]
            (out,) = comfy_nodes.KSampler().sample(
                patched,
                seed=3,
                positive=positive,
                negative=negative,
                latent_image=latent or parts["latent_image"],
                **SAMPLER,
            )
            return vae.decode(out["samples"])

        @staticmethod
        @torch.inference_mode()
        def score(images, text="", encoders=encoders, **reference):
            reference = {"reference": parts["reference"], **reference}
            return nodes["FlexIPScore"].execute(images, encoders, prompt=text, **reference).args

        @classmethod
        def ends(cls):
            """DINO-I at γ 0 and 1."""
            return [cls.score(cls.draw(gamma))[1][0] for gamma in (0.0, 1.0)]

    Graph.parts, parts["reference"] = parts, Graph.draw(1.0)  # the likeness to it rises with γ
    asked["target"] = sum(Graph.ends()) / 2
    return Graph


def bisected(search, score, target, tolerance=0.01, most=12):
    asked = []

    def score_at(gamma):
        asked.append(gamma)
        return score(gamma)

    found = search.find_gamma(score_at, target, tolerance, most, "CLIP-I")
    assert asked == [one.gamma for one in found.tried] and len(set(asked)) == len(asked) <= most
    return found, search.write_log(found, "CLIP-I", target, tolerance)


@pytest.mark.parametrize("score", [lambda g: g**2, lambda g: 0.9 - g**3], ids=["rises", "falls"])
def test_the_search_comes_to_the_gamma_of_the_target(search, score):
    found, log = bisected(search, score, 0.36, tolerance=0.001)
    assert abs(score(found.best.gamma) - 0.36) <= 0.001 and not found.warnings
    assert f"Reached after {len(found.tried)} samplings." in log and log.count("<- given out") == 1


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_an_end_that_has_the_target_is_it(search, end):
    found, _ = bisected(search, lambda gamma: gamma, end + 0.005)
    assert found.best.gamma == end and len(found.tried) == 1 + end and not found.warnings


@pytest.mark.parametrize(("target", "end"), [(0.1, 0.0), (0.95, 1.0)])
def test_a_target_out_of_reach_gives_the_nearer_end_and_both_scores(search, target, end):
    found, log = bisected(search, lambda gamma: 0.3 + gamma / 2, target)
    assert found.best.gamma == end and len(found.tried) == 2
    assert "out of reach: CLIP-I is 0.3000 at γ 0 and 0.8000 at γ 1" in found.warnings[0]
    assert f"Warning: {found.warnings[0]}." in log and "Reached" not in log


def test_what_keeps_a_search_from_its_target_is_told(search):
    few, log = bisected(search, lambda gamma: gamma, 0.37, tolerance=0.001, most=4)
    assert few.best.gamma == 0.25 or few.best.gamma == 0.5
    assert "4 samplings did not come within 0.001" in few.warnings[0] and "Reached" not in log
    jump, _ = bisected(search, lambda gamma: 0.2 if gamma < 0.3 else 0.8, 0.5, most=32)
    assert "jumps over the target: it is 0.2000 at γ 0.29" in jump.warnings[0] and len(jump.tried) < 14
    turning, log = bisected(search, lambda gamma: 4 * gamma * (1 - gamma) + gamma / 2, 0.3)
    assert abs(turning.best.score - 0.3) <= 0.01 and "Reached" in log
    assert turning.warnings == ["CLIP-I does not move in one direction over γ, so other γ may reach the target too"]
    noise, _ = bisected(search, lambda gamma: gamma if gamma < 1 else gamma - 1e-5, 0.3)
    assert not noise.warnings


def test_the_picture_found_is_ksamplers_at_this_gamma_and_its_score_that_of_score(graph):
    low, high = graph.ends()
    gamma, picture, score, log = graph.find()
    assert 0 < gamma < 1 and len([line for line in log.splitlines() if line.startswith("γ ")]) == 4
    assert torch.equal(picture, graph.draw(gamma))
    assert score == graph.score(picture)[1][0]
    for end, value in ((0, low), (1, high)):
        assert f"γ {end:<9} DINO-I {value:.4f}" in log
    assert "no independent judges" in log


def test_a_target_out_of_reach_gives_that_ends_picture_and_warns(graph, caplog):
    low, high = graph.ends()
    gamma, picture, score, log = graph.find(target=2 * max(low, high) - min(low, high))
    assert (gamma, score) == max(((0.0, low), (1.0, high)), key=lambda one: one[1])
    assert torch.equal(picture, graph.draw(gamma))
    assert "out of reach" in log and "out of reach" in caplog.text


def test_a_batch_is_searched_by_its_mean(graph):
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    gamma, pictures, score, _ = graph.find(latent_image=latent, most=2)
    assert torch.equal(pictures, graph.draw(gamma, latent)) and len(pictures) == 2
    values = graph.score(pictures)[1]
    assert abs(score - sum(values) / 2) < 1e-6 and values[0] != values[1]


def traces(model) -> tuple:
    """Everything that a node could leave on a model."""
    options = copy.copy(model.model_options)
    return (options, model.patches.copy(), model.object_patches.copy(), copy.copy(model.wrappers), model.callbacks)


def test_one_bar_goes_over_all_samplings_and_an_interrupt_leaves_nothing_on_the_model(graph, comfy):
    utils, management = (importlib.import_module(f"comfy.{name}") for name in ("utils", "model_management"))
    model, seen = graph.parts["model"], []
    before = copy.deepcopy(traces(model))

    def told(value, total, *_, **__):
        seen.append((value, total))

    def told_and_interrupted(value, total, *_, **__):
        seen.append((value, total))
        if value >= 3:
            management.interrupt_current_processing()

    whole = graph.find()
    for hook in (told, told_and_interrupted):
        seen.clear()
        utils.set_progress_bar_global_hook(hook)
        try:
            if hook is told:
                graph.find()
            else:
                with pytest.raises(management.InterruptProcessingException):
                    graph.find()
        finally:
            utils.set_progress_bar_global_hook(None)
            management.interrupt_current_processing(False)
        moved = [step for step in seen if step[1] == 8]
        # Newer hosts leave out steps that come within a tenth of a second.
        assert moved == sorted(moved) and moved[0] == (1, 8) and (moved[-1] == (8, 8)) == (hook is told)
        assert {value for value, total in seen if total == 2} == set(), "KSampler's own bar moved too"
        assert traces(model) == before
    again = graph.find()
    assert torch.equal(again[1], whole[1]) and again[3] == whole[3]


def test_an_adapter_that_is_on_the_model_already_is_told(graph, nodes, caplog):
    patched = nodes["FlexIPApply"].execute(graph.parts["model"], graph.parts["adapter"], 0.5, 1.0, 0.0, 1.0).args[0]
    graph.find(most=2)
    assert "from before Apply" not in caplog.text
    graph.find(model=patched, most=2)
    assert "from before Apply" in caplog.text


def test_scores_are_those_of_the_libraries(graph, pack, whole_clip, dino_model, tmp_path):
    wires = importlib.import_module(f"{pack.__name__}.nodes.wires")
    own = importlib.import_module(f"{pack.__name__}.flexip_model.encoders")
    clip = own.load_clip(save(tmp_path / "whole.safetensors", whole_clip.state_dict(), CLIP_SPEC))
    dino = own.load_dino(save(tmp_path / "dino.safetensors", dino_model.state_dict(), DINO_SPEC))
    loaded = wires.manage_encoders(own.Encoders(clip, dino))
    images = torch.rand(3, 40, 60, 3, generator=torch.Generator().manual_seed(1))
    references = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(2))
    clip_i, dino_i, clip_t, labels, table = graph.score(images, "a cat", loaded, reference=references)

    def features(model, pictures, side):
        pixels = normalize(prepare(pictures, side).pixels, HALF, HALF)
        with torch.no_grad():
            if model is dino_model:
                return model(pixels).last_hidden_state[:, 1:].mean(1)
            found = model.get_image_features(pixel_values=pixels)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    for found, model, side in ((clip_i, whole_clip, 32), (dino_i, dino_model, 28)):
        ours, theirs = features(model, images, side), features(model, references, side)
        wanted = F.cosine_similarity(ours[:, None], theirs[None], dim=-1).mean(1)
        assert (torch.tensor(found) - wanted).abs().max() <= 1e-4
    from open_clip.tokenizer import SimpleTokenizer

    with torch.no_grad():
        words = whole_clip.get_text_features(input_ids=SimpleTokenizer()(["a cat"], 77))
    words = words if isinstance(words, torch.Tensor) else words.pooler_output
    wanted = F.cosine_similarity(features(whole_clip, images, 32), words)
    assert (torch.tensor(clip_t) - wanted).abs().max() <= 1e-4
    assert labels[1] == f"CLIP-I {clip_i[1]:.3f}\nDINO-I {dino_i[1]:.3f}\nCLIP-T {clip_t[1]:.3f}"
    lines = table.splitlines()
    assert lines[2].split() == ["2", *(f"{score[1]:.4f}" for score in (clip_i, dino_i, clip_t))]
    assert lines[4].split()[0] == "mean" and "no independent judges" in lines[5] and len(lines) == 6


def test_what_is_missing_has_a_sentence_and_no_number(graph, nodes, demo, tiny_folder, pack):
    blocker = importlib.import_module("comfy_execution.graph_utils").ExecutionBlocker
    encoders = importlib.import_module(f"{pack.__name__}.nodes.wires").manage_encoders(
        importlib.import_module(f"{pack.__name__}.flexip_model.encoders").Encoders(demo[3].encoders.clip)
    )
    for settings, sentences in (
        ({"reference": None, "text": "a cat"}, ("no reference is connected",) * 2 + ("holds no text tower",)),
        ({"text": ""}, (None, None, "no prompt is given")),
        ({"encoders": encoders}, (None, "no DINO encoder is loaded", "no prompt is given")),
    ):
        *scores, labels, table = graph.score(torch.rand(2, 64, 64, 3), **settings)
        for name, found, sentence in zip(("CLIP-I", "DINO-I", "CLIP-T"), scores, sentences, strict=True):
            if sentence is None:
                assert len(found) == 2 and name in labels[0]
            else:
                assert isinstance(found[0], blocker) and sentence in found[0].message
                assert name not in labels[0] and f"{name} is empty: " in table and sentence in table
    with pytest.raises(ValueError, match="there is no CLIP-T to search by: no prompt is given"):
        graph.find(score="CLIP-T")
    with pytest.raises(ValueError, match="there is no DINO-I to search by: no reference is connected"):
        graph.find(reference=None)


def test_labels_stand_below_their_pictures(pack):
    draw = importlib.import_module(f"{pack.__name__}.nodes.grid").draw_grid
    images = torch.full((4, 120, 120, 3), 0.5)
    plain, labeled = draw(images, [0.0, 1.0]), draw(images, [0.0, 1.0], labels=["CLIP-I 0.5\nDINO-I 0.6", "", "x", ""])
    assert labeled.shape[1] > plain.shape[1] + 4 * 12 and labeled.shape[2] == plain.shape[2]
    ink = (labeled[0] < 0.4).all(-1)
    below = ink[-1 - (labeled.shape[1] - plain.shape[1]) // 2 :]
    assert below[:, : ink.shape[1] // 2].any() and not below[:, ink.shape[1] // 2 :].any()
    with pytest.raises(ValueError, match="4 pictures and 3 labels"):
        draw(images, [0.0, 1.0], labels=["", "", ""])
