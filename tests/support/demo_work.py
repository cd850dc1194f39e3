"""A work folder of the small model with a tiny store, and plans that are done in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexip_model.demo.making import finished, legs, pictures
from flexip_model.demo.making.plan import Plan, plan_of
from flexip_model.demo.scenes import drawn
from flexip_model.demo.scenes.words import write_tokenizer
from flexip_model.demo.workshop import Workshop

from .demo_cast import cast_store, write_store

STEPS = {"seconds": 1e9, "batch": 2, "steps": 1, "warmup": 1}
WANTED = ("flexip-seed1", "ip-adapter-seed1", "ip-adapter-plus-seed1", "flexip-no_s-seed1")


def tiny_plan(**changes) -> Plan:
    """One step of two samples each, eight targets, and changes as `--plan` takes them."""
    paces = dict.fromkeys(("names", "vae", "clip", "dino", "base", "tokens", "places", "keys", "adapters"), STEPS)
    paces["base"] = {**STEPS, "steps": 3, "lr": 0.02}
    plan = {**paces, "targets": 8, "lessons": 8, "calibrated": 1, "wanted": list(WANTED)}
    for key, value in changes.items():
        plan[key] = {**STEPS, **value} if key in paces else value
    return plan_of(json.dumps(plan))


def make_tiny(patch: pytest.MonkeyPatch) -> None:
    """Let everything else that a leg does be small too."""
    patch.setattr(drawn, "CHUNK", 8)
    patch.setattr(legs, "SCENE_VARIANTS", 1)
    patch.setattr(legs, "LOOKS", legs.LOOKS[:1])
    patch.setattr(pictures, "NORMALIZED_ON", 4)
    patch.setattr(finished, "DIAL_STEPS", 1)


def make_work(folder: Path) -> Path:
    """Store, tokenizer and text encoder."""
    write_store(cast_store(), folder / finished.STORE)
    write_tokenizer(cast_store().split(heldout=False), folder / finished.TOKENIZER)
    Workshop(folder, folder, tiny_plan()).names()
    return folder
