"""The text tower of a file that holds a whole CLIP, against the libraries' own classes, and CLIP-T with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from flexip_model.common.errors import FlexIPError
from flexip_model.encoders import (
    clip_vectors,
    cosines,
    dino_vectors,
    load_clip,
    load_dino,
    load_text,
    text_vectors,
)
from flexip_model.images.preprocess import normalize, prepare

from ..support.encoder_files import CLIP_SPEC, DINO_SPEC, HALF, save

TEXTS = ("a red cube, on the Moon", "x " * 200, "")


def of_transformers(model, texts) -> torch.Tensor:
    """What transformers' class makes of the tokens that open_clip's tokenizer gives."""
    from open_clip.tokenizer import SimpleTokenizer

    with torch.no_grad():
        found = model.get_text_features(input_ids=SimpleTokenizer()(list(texts), 77))
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def to_open_clip(path: Path, whole: dict) -> dict:
    """open_clip's names of a whole model, by the towers that were read."""
    seen, text = load_clip(path).visual.state_dict(), load_text(path).tower.state_dict()
    return {f"visual.{key}": value for key, value in seen.items()} | text | {"logit_scale": whole["logit_scale"]}


def test_every_format_gives_what_transformers_and_open_clip_give(whole_clip, tmp_path: Path) -> None:
    from open_clip import CLIP

    path = save(tmp_path / "whole.safetensors", whole_clip.state_dict(), CLIP_SPEC)
    wanted, written = of_transformers(whole_clip, TEXTS), to_open_clip(path, whole_clip.state_dict())
    under_text = {
        (key if key.startswith(("visual.", "logit_")) else f"text.{key}"): value for key, value in written.items()
    }
    for name, tensors in (
        ("transformers", load_file(path)),
        ("open_clip", written),
        ("open_clip, a tower of its own", under_text),
    ):
        tower = load_text(save(tmp_path / "clip.safetensors", tensors, CLIP_SPEC))
        with torch.no_grad():
            assert (tower(TEXTS) - wanted).abs().max() <= 1e-4 * wanted.abs().max(), name
        assert (tower.width, tower.length) == (24, 77)
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2, "mlp_ratio": 1.5}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8}
    theirs = CLIP(24, vision, text).eval()
    theirs.load_state_dict(written)
    with torch.no_grad():
        tokens = tower.tokenizer(list(TEXTS), 77)
        assert (theirs.encode_text(tokens) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_scores_are_the_cosines_of_the_libraries_embeddings(whole_clip, dino_model, tmp_path: Path) -> None:
    path = save(tmp_path / "whole.safetensors", whole_clip.state_dict(), CLIP_SPEC)
    clip = load_clip(path)
    text = load_text(clip.file)
    dino = load_dino(save(tmp_path / "dino.safetensors", dino_model.state_dict(), DINO_SPEC))
    pictures = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        pixels = normalize(pictures.permute(0, 3, 1, 2), HALF, HALF)
        theirs = whole_clip.get_image_features(pixel_values=pixels)
        theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
        patches = dino_model(normalize(prepare(pictures, 28).pixels, HALF, HALF)).last_hidden_state[:, 1:]
    seen = clip_vectors(clip, prepare(pictures, 32).pixels)
    words = text_vectors(text, ["a cat"] * 2)
    for found, wanted in (
        (cosines(seen, words), F.cosine_similarity(theirs, of_transformers(whole_clip, ["a cat"]))),
        (cosines(seen[:1], seen[1:]), F.cosine_similarity(theirs[:1], theirs[1:])),
        (
            cosines(*dino_vectors(dino, prepare(pictures, 28).pixels).split(1)),
            F.cosine_similarity(*patches.mean(1).split(1)),
        ),
    ):
        assert (found - wanted).abs().max() <= 1e-4


def test_a_file_without_a_text_tower_has_none_and_a_foreign_one_is_refused(whole_clip, clip_models, tmp_path) -> None:
    assert load_text(save(tmp_path / "seen.safetensors", clip_models[0].state_dict(), CLIP_SPEC)) is None
    state, words = whole_clip.state_dict(), "text_model.embeddings.token_embedding.weight"
    for change, message in (
        ({words: torch.ones(50, 128)}, "50 tokens; expected the 49408"),
        ({words: torch.ones(49408, 24)}, "which does not give|not CLIP's"),
        ({"text_model.final_layer_norm.bias": torch.full((128,), torch.nan)}, "NaN"),
        ({"text_model.encoder.layers.0.mlp.fc1.bias": torch.ones(1)}, "which does not give|not CLIP's"),
    ):
        with pytest.raises(FlexIPError, match=message):
            load_text(save(tmp_path / "wrong.safetensors", state | change, CLIP_SPEC))
    lacks = {key: value for key, value in state.items() if key != "text_model.encoder.layers.1.mlp.fc1.bias"}
    with pytest.raises(FlexIPError, match=r"lacks 1 of \d+ tensors, first transformer.resblocks.1.mlp.c_fc.bias"):
        load_text(save(tmp_path / "lacks.safetensors", lacks, CLIP_SPEC))
