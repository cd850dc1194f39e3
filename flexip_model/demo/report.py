"""What the exported model does: grids for the eye, and numbers against the truth of the composition.

Everything is read from the shipped files through the same loaders that users' files go through.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..checkpoint import build_adapter, load_adapter_file
from .base import Base
from .compose import Composer
from .encoders import Features
from .export import ENCODER_FILES
from .sampling import grid, mean_step, sample
from .scenes import COLORS, SCENES, color_name, draw_scene
from .vae import psnr, to_pixels
from .words import Words

GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Shipped:
    """The parts of an exported folder, in fp32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        from ..encoders import load_clip, load_dino

        self.words = Words(folder / "tokenizer")
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").float().eval()
        self.base = Base.__new__(Base)
        torch.nn.Module.__init__(self.base)
        self.base.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float().eval()
        self.base.text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float().eval()
        info, tensors = load_adapter_file(folder / "flexip_demo.safetensors")
        self.adapter = build_adapter(info, {k: v.float() for k, v in tensors.items()})
        visual = load_clip(folder / "encoders" / ENCODER_FILES["open_clip"]).float().visual
        dino = load_dino(folder / "encoders" / ENCODER_FILES["dinov2"]).float().model
        self.features = Features(visual, dino)


def border(picture: Image.Image, width: int = 10) -> np.ndarray:
    """Median colour of a picture's frame, (3,), 0 to 255."""
    values = np.asarray(picture, np.float32)
    inside = np.zeros(values.shape[:2], bool)
    inside[width:-width, width:-width] = True
    return np.median(values[~inside], axis=0)


class SceneJudge:
    """Names a scene from the frame of a picture: the nearest of the scenes' mean drawings (not trained on anything
    that the model made)."""

    def __init__(self) -> None:
        self.means = {name: np.mean([self._look(draw_scene(name, np.random.default_rng(i), 128)) for i in range(64)], 0)
                      for name in SCENES}

    @staticmethod
    def _look(picture: Image.Image) -> np.ndarray:
        cells = np.asarray(picture.convert("RGB").resize((8, 8), Image.Resampling.BOX), np.float32)
        frame = np.ones((8, 8), bool)
        frame[1:-1, 1:-1] = False
        return cells[frame]

    def __call__(self, picture: Image.Image) -> str:
        look = self._look(picture)
        return min(self.means, key=lambda n: float(((look - self.means[n]) ** 2).mean()))


def _places() -> list[tuple[str, str, str]]:
    """(kind, name, words) of every plain colour and scene."""
    return [("color", c, f"on a plain {c} background") for c in COLORS] + [
        ("scene", s, words[0]) for s, (_, words) in SCENES.items()]


def _judge(pictures: list[Image.Image], places: list[tuple[str, str, str]], scenes: SceneJudge) -> dict[str, float]:
    right: dict[str, list[bool]] = {"color": [], "scene": []}
    for picture, (kind, name, _) in zip(pictures, places, strict=True):
        found = color_name(border(picture)) if kind == "color" else scenes(picture)
        right[kind].append(found == name)
    return {kind: round(float(np.mean(v)), 3) for kind, v in right.items()}


def report(folder: Path, seen: Composer, heldout: Composer, out: Path, subjects: int = 10) -> dict:
    """Write ``base.png``, ``sweep.png``, ``vae.png`` and ``numbers.json`` into ``out``; returns the numbers."""
    out.mkdir(parents=True, exist_ok=True)
    model, scenes, rng = Shipped(folder), SceneJudge(), np.random.default_rng(77)
    numbers: dict = {"vae_psnr_db": {"heldout": round(psnr(model.vae, heldout), 2),
                                     "seen": round(psnr(model.vae, seen), 2)}}
    originals = [heldout.picture(heldout.recipe(rng, recolor=0)) for _ in range(8)]
    with torch.no_grad():
        pixels = to_pixels(originals)
        from .vae import to_pictures

        grid([originals, to_pictures(model.vae.decode(model.vae.encode(pixels).latent_dist.mean).sample)]).save(
            out / "vae.png")

    places = _places() * 2
    names = [seen.store.subjects[i].name for i in rng.integers(len(seen.store.subjects), size=len(places))]
    prompts = [f"a 3d render of a {n} {p[2]}" for n, p in zip(names, places, strict=True)]
    pictures = sample(model.base, model.vae, model.words, prompts, seed=1)
    numbers["base_text_fidelity"] = _judge(pictures, places, scenes)
    truth = [seen.picture(replace(seen.recipe(rng, recolor=0), background=("plain:" if k == "color" else "scene:") + n))
             for k, n, _ in places]
    numbers["judge_on_true_pictures"] = _judge(truth, places, scenes)
    grid([pictures[i : i + 10] for i in range(0, len(pictures), 10)]).save(out / "base.png")

    numbers["sweep"], rows = _sweeps(model, heldout, scenes, rng, subjects)
    grid(rows).save(out / "sweep.png")
    (out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return numbers


def _sweeps(model: Shipped, heldout: Composer, scenes: SceneJudge, rng: np.random.Generator,
            subjects: int) -> tuple[dict, list[list[Image.Image]]]:
    """γ sweeps of held-out subjects: text fidelity, evenness, and how often the demo's own CLIP-like tower finds the
    reference among all held-out subjects (its own tower: a hint, not a judgement)."""
    all_subjects = heldout.store.subjects
    references = {}
    for subject in all_subjects:
        look = heldout.store.looks_of(subject.code, "3d")[0]
        plain = replace(heldout.recipe(rng, look, recolor=0), background="plain:white", scale=1.0, stretch=1.0, x=0.5,
                        y=0.5, flip=False, angle=0.0)
        references[subject.code] = heldout.picture(plain)
    gallery = torch.nn.functional.normalize(model.features(to_pixels(list(references.values())))[0], dim=-1)
    picked = rng.choice(len(all_subjects), subjects, replace=False)
    places = [_places()[i] for i in rng.choice(len(_places()), subjects, replace=False)]
    rows, steps = [], []
    found: dict[float, list[bool]] = {g: [] for g in GAMMAS}
    at: dict[float, list[Image.Image]] = {g: [] for g in GAMMAS}
    for row, (index, place) in enumerate(zip(picked, places, strict=True)):
        subject = all_subjects[index]
        reference = references[subject.code]
        features = model.features(to_pixels([reference] * len(GAMMAS)))
        pictures = sample(model.base, model.vae, model.words, [f"a 3d render of a {subject.name} {place[2]}"] * 5,
                          adapter=model.adapter, features=features, gammas=GAMMAS, seed=100 + row, same_noise=True)
        rows.append([reference, *pictures])
        steps.append(mean_step(pictures))
        ranks = torch.nn.functional.normalize(model.features(to_pixels(pictures))[0], dim=-1) @ gallery.t()
        for gamma, picture, rank in zip(GAMMAS, pictures, ranks, strict=True):
            at[gamma].append(picture)
            found[gamma].append(int(rank.argmax()) == int(index))
    fidelity = {str(g): _judge(at[g], places, scenes) for g in GAMMAS}
    return {
        "subjects": subjects, "text_fidelity": fidelity,
        "own_tower_first_of": len(all_subjects),
        "own_tower_first": {str(g): round(float(np.mean(v)), 3) for g, v in found.items()},
        "mean_pixel_step": np.round(np.mean(steps, 0), 4).tolist(),
    }, rows
