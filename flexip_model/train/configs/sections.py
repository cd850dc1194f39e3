"""The sections of a training's config, and the types of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BeforeValidator, ConfigDict, Field

from .parts import Part

CLOSED = ConfigDict(extra="forbid")
"""A key that a section does not know is a mistake."""


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as text: its numbers need a point."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


MOST = 10**9
"""Far above any count of a run (our choice): a slip of the finger is told before it fills memory."""

# Types with what pydantic asks of their values. Strict: "8" and `true` are no numbers.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Decay = Annotated[Number, Field(ge=0, lt=1)]
Whole = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Sampling = Annotated[int, Field(strict=True, ge=1, le=1000)]  # a base has 1000 noise levels
Scale = Annotated[Number, Field(ge=0, le=100)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Place = Annotated[str, Field(min_length=1)]
Flag = Annotated[bool, Field(strict=True)]
OneOrSeveral = BeforeValidator(_list)


@dataclass(frozen=True)
class TrainStage:
    """Optimizer steps on one part of the data.

    Attributes:
        steps: how many (App. B.1: 100,000, then 40,000).
        quality: `any`, or `high` for the groups packed with `--quality high` (App. B.1: the second stage has
            "higher-quality images"; that these are Table 3's "High" is our reading).
        parts: of the adapter that are trained (`parts.PARTS`), while the others stay as they are; none named are all
            (the paper's).
    """

    __pydantic_config__ = CLOSED

    steps: Count
    quality: Literal["any", "high"] = "any"
    parts: Annotated[tuple[Part, ...], OneOrSeveral] = ()


@dataclass(frozen=True)
class References:
    """How references differ from targets.

    Attributes:
        white: share of references whose background is white, where a mask is known (our choice).
        flip_image, flip_variant: share of mirrored references per kind of data. The paper has none; a short training
            with them laid the subject over its own mirror image at middle γ (docs/small-model.md).
        crop: `center`, `pad` or `subject` (see `preprocess.prepare`): `center` follows the subject's box where it is
            known, `subject` is `pad` without a mask. The adapter's file records it, and the nodes crop so.
    """

    __pydantic_config__ = CLOSED

    white: Share = 0.5
    flip_image: Share = 0.0
    flip_variant: Share = 0.0
    crop: Literal["center", "pad", "subject"] = "pad"


@dataclass(frozen=True)
class Buckets:
    """Targets of the nearest of some sizes of at most `size`² pixels, in place of squares, each batch of one of them
    (`images.buckets`).

    Attributes:
        step: sides are multiples of it, pixels; 64 for SD1.5: 8 of its VAE times 8 of its UNet.
        limit: longest over shortest side, at most.
    """

    __pydantic_config__ = CLOSED

    step: Annotated[Count, Field(multiple_of=8)] = 64
    limit: Annotated[Number, Field(ge=1, le=8)] = 2.0


@dataclass(frozen=True)
class ConditioningDropout:
    """Shares of samples without image, without text, without both. App. B.1: "a 5% probability of dropping text,
    images, or both"; three exclusive cases of 5 % each are our reading."""

    __pydantic_config__ = CLOSED

    image: Share = 0.05
    text: Share = 0.05
    both: Share = 0.05

    def drop(self, drawn: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which samples lose their image, and which their text.

        Args:
            drawn: evenly from [0, 1), of any shape, one for each sample.

        Returns:
            Two masks of that shape.
        """
        case = np.digitize(np.asarray(drawn, np.float64), np.cumsum([self.image, self.text, self.both]))
        return (case == 0) | (case == 2), (case == 1) | (case == 2)


@dataclass(frozen=True)
class ValidationLoss:
    """What is measured on groups of the split `val` while a run goes on (our choice).

    Attributes:
        every: steps between two measurements; 0 for none.
        groups: most groups of either side of the gate.
    """

    __pydantic_config__ = CLOSED

    every: Whole = 1000
    groups: Annotated[Count, Field(le=10_000)] = 64


@dataclass(frozen=True)
class Dial:
    """How the pictures are drawn that the dial is measured on: as an adapter's users draw, or the dial is theirs no
    more.

    Attributes:
        steps, guidance: the paper's (App. B.1).
    """

    __pydantic_config__ = CLOSED

    steps: Sampling = 50
    guidance: Scale = 7.5
