"""What is another when a run goes on: what must not be, and what is said and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIXED = ("seed", "batch", "accumulation", "image_share", "size", "buckets", "adapter", "optimizer")
"""Values of the config that decide which samples come, or which weights and moments there are."""
BEFORE = {"optimizer": "adamw", "buckets": None}
"""Of `FIXED`, those that configs of earlier runs do not name, and what they were."""
ASIDE = (
    *("output", "data", "base", "base_configs", "vae", "clip", "dino", "workers", "save_every", "keep", "log_every"),
    *("preview_every", "preview_steps", "guidance", "bad_share", "validation", "trackers", "dial", "title", "license"),
)
"""Values that no weight depends on; data, base and encoders are known by their content."""


def fixed_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What must not be another: a phrase for each, with both values.

    Args:
        saved, now: configs as `to_dict` gives them, as JSON.
    """
    saved = {**BEFORE, **saved}
    return [
        f"{key} {in_words(saved[key])}, the config now says {in_words(now[key])}"
        for key in FIXED
        if saved[key] != now[key]
    ]


def other_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What weights depend on from here on: a phrase for each, with both values."""
    found = []
    for key, value in now.items():
        if key in (*FIXED, *ASIDE) or key not in saved or saved[key] == value:
            continue
        if isinstance(value, dict):
            pairs = {f"{key}.{name}": (saved[key].get(name), held) for name, held in value.items()}
        else:
            pairs = {key: (saved[key], value)}
        found += [f"{name} {in_words(old)} → {in_words(new)}" for name, (old, new) in pairs.items() if old != new]
    return found


def stage_changes(saved: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], step: int) -> str | None:
    """What is wrong with the stages of a run that has come to `step`; None where its steps lie as they lay."""
    end = sum(stage["steps"] for stage in now)
    if end < step:
        return (
            f"has come to step {step}, and the stages of the config end at step {end}; give stages that end later, "
            "export what there is, or name another output folder"
        )
    if _until(saved, step) != _until(now, step):
        return (
            f"has come to step {step} by the stages {in_words(list(saved))}, and the config now says "
            f"{in_words(list(now))}; leave those that are over or begun where they were, or name another output folder"
        )
    return None


def data_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How data differ from those that a run was started on: a phrase for each data set.

    Args:
        saved, now: as `identity` gives them; what one of the two does not tell is not compared.
    """
    before, after = saved["sets"], now["sets"]
    found = [f"{name} is missing" for name in before if name not in after]
    found += [f"{name} is new" for name in after if name not in before]
    for name in before:
        old, new = before[name], after.get(name, {})
        counts = f"{old['groups']} groups then, {new.get('groups')} now"
        if any(old[key] != new[key] for key in ("groups", "pictures") if key in old and key in new):
            found.append(f"the pictures of {name} are others ({counts})")
        elif any(old[key] != new[key] for key in ("captions",) if key in old and key in new):
            found.append(f"the captions of {name} are others")
    if not found and saved.get("order", now["order"]) != now["order"]:
        found.append("the data sets come in another order")
    return found


def in_words(value: Any) -> str:
    """A value of a config for people: no brackets and quotes, and of a path its name alone."""
    if isinstance(value, Mapping):
        if {"steps", "quality"} <= set(value):
            parts = "".join(f", {part}" for part in value.get("parts", ()))
            return f"{value['steps']} ({value['quality']}{parts})"
        return ", ".join(f"{key}: {in_words(held)}" for key, held in value.items()) or "nothing"
    if isinstance(value, list):
        return ", ".join(map(in_words, value)) or "nothing"
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return Path(value).name
    return "nothing" if value is None else str(value)


def _until(stages: Sequence[Mapping[str, Any]], step: int) -> list[tuple[int, str, set[str]]]:
    """How many steps of each stage lie before `step`, on what quality, and of which parts."""
    found, begun = [], 0
    for stage in stages:
        taken = min(stage["steps"], step - begun)
        if taken > 0:
            found.append((taken, stage["quality"], set(stage.get("parts", ()))))
        begun += stage["steps"]
    return found
