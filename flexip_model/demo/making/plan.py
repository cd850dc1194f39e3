"""What is trained, for how long: by default as much as a card does in three legs of nine minutes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any

from ...common.errors import FlexIPError
from ..stages.kinds import CONFIGS, kind_and_seed
from .stepper import Pace

STAGES = ("vae", "clip", "dino", "base", "tokens", "places", "keys", "adapters")
"""Of `train`, in order."""
ABLATIONS = ("short", "no_s", "no_cls", "no_queries", "no_gate", "images", "variants")


def _wanted() -> tuple[str, ...]:
    """Three seeds of each kind, then what fewer queries lose where the subject stands elsewhere, then the ablations."""
    return (
        *(f"{kind}-seed{seed}" for seed in (1, 2, 3) for kind in CONFIGS),
        "flexip-moved_64-seed1",
        *(f"flexip-{name}-seed1" for name in ABLATIONS),
    )


@dataclass(frozen=True)
class Plan:
    """Times, batches and counts. Times are for an H100, which trains 1,085 samples of the VAE a second, 6,500 of the
    CLIP-like encoder, 4,100 of the DINO-like one, 7,700 of the base and 7,200 of all adapters taken together; what is
    left of 27 minutes goes into three starts, painting, encoding and dials.

    Attributes:
        names: how the text encoder is trained, on a processor, by a number of steps.
        vae, clip, dino, base, tokens, places, keys, adapters: how each of these is trained. Adapters share the time and
            the batches, which are small: they lacked steps, not samples, after 2,336 steps of 256.
        targets: painted for the encoders and adapters.
        lessons: painted for the base.
        calibrated: trained subjects on which a dial is measured.
        wanted: the adapters that are trained, KIND-seedN, the most important first.
    """

    names: Pace = field(default_factory=lambda: Pace(inf, 96, steps=500, warmup=20, decay_from=0.3, ema=0.99))
    vae: Pace = field(default_factory=lambda: Pace(100, 64, lr=6e-4, decay_from=0.3, ema=0.998))
    clip: Pace = field(default_factory=lambda: Pace(40, 256, ema=0.995, warmup=50))
    dino: Pace = field(default_factory=lambda: Pace(50, 128, ema=0.995, warmup=50))
    base: Pace = field(default_factory=lambda: Pace(400, 512, lr=1.2e-3, warmup=300, ema=0.9995))
    tokens: Pace = field(default_factory=lambda: Pace(30, 64, warmup=30, ema=0.99))
    places: Pace = field(default_factory=lambda: Pace(60, 96, lr=3e-3, warmup=50, decay_from=0.2, ema=0.99))
    keys: Pace = field(default_factory=lambda: Pace(10, 16, lr=3e-3, warmup=20, decay_from=0.6, ema=0.95))
    adapters: Pace = field(default_factory=lambda: Pace(540, 96, lr=5e-4, warmup=100))
    targets: int = 100_000
    lessons: int = 300_000
    calibrated: int = 32
    wanted: tuple[str, ...] = field(default_factory=_wanted)


def plan_of(text: str, plan: Plan | None = None) -> Plan:
    """A plan with the paces, counts and adapters that a JSON object names, such as
    `{"vae": {"seconds": 2}, "targets": 2048, "wanted": ["flexip-seed1"]}`.

    Raises:
        FlexIPError: it is no JSON object, or names what no plan has.
    """
    plan = plan or Plan()
    try:
        given = json.loads(text)
    except ValueError as error:
        raise FlexIPError(f"--plan is no JSON ({error}); expected one such as " + _LIKE) from error
    if not isinstance(given, dict):
        raise FlexIPError(f"--plan is {text}; expected a JSON object such as {_LIKE}")
    return replace(plan, **{key: _changed(plan, key, value) for key, value in given.items()})


_ABOVE_0 = ("seconds", "batch", "steps", "lr", "until", "warmup")
_LIKE = '{"base": {"seconds": 600}, "wanted": ["flexip-seed1"]}'


def _changed(plan: Plan, key: str, value: Any) -> Any:
    known = [f.name for f in fields(Plan)]
    if key not in known:
        raise FlexIPError(f"a plan has no {key}; it has {', '.join(known)}")
    if key == "wanted":
        if not isinstance(value, list) or not value:
            raise FlexIPError(f'wanted is {value}; expected a list of adapters such as ["flexip-seed1"]')
        for name in value:
            kind_and_seed(str(name))
        return tuple(value)
    now = getattr(plan, key)
    if isinstance(now, Pace):
        return _paced(key, now, value)
    if not isinstance(value, int) or value < 1:
        raise FlexIPError(f"{key} is {value}; expected a whole number from 1")
    return value


def _paced(key: str, pace: Pace, value: Any) -> Pace:
    known = [f.name for f in fields(Pace) if f.name != "betas"]
    if not isinstance(value, Mapping) or not set(value) <= set(known):
        raise FlexIPError(f"{key} is {value}; expected an object with some of {', '.join(known)}")
    low = [k for k, v in value.items() if not isinstance(v, (int, float)) or v < 0 or (v == 0 and k in _ABOVE_0)]
    if low:
        raise FlexIPError(f"{low[0]} of {key} is {value[low[0]]}; expected a number above 0")
    if value.get("batch", 2) < 2:
        raise FlexIPError(f"the batch of {key} is {value['batch']}; expected at least 2")
    return replace(pace, **value)
