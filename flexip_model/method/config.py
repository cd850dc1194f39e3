"""Every size and constant of an adapter; it travels in the checkpoint's header."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from itertools import pairwise

from ..common.errors import FlexIPError
from . import sd15

MAX_DEPTH, MAX_SIZE = 64, 65536
"""Far above any adapter (our choice): a damaged file must not ask for a million layers before its keys are compared."""


@dataclass(frozen=True)
class FlexIPConfig:
    """Sizes of a FlexIP adapter; the defaults are those for SD1.5, OpenCLIP ViT-H/14 and DINOv2-L/14.

    Attributes:
        kind: the name of the adapter's class (`adapters.ADAPTERS`), which `adapters.adapter_class` looks up.
        width: d, the width inside the resamplers (§3.1; the number is IP-Adapter-Plus's).
        depth: PSA layers per resampler ("several" in §3.1; our choice, as IP-Adapter-Plus).
        heads, head_width: attention heads of a PSA layer (our choice, as IP-Adapter-Plus).
        feed_forward: width of a feed-forward layer over d (our choice, as IP-Adapter-Plus).
        queries: N_L, learnable queries; for `ip-adapter` the number of image tokens (§3.1; our choice).
        clip_width: width of the CLIP [CLS] embedding Z^(C) (after projection).
        retrieval_width: width of the retrieval embedding Z^(D): DINOv2's patch tokens, or CLIP's hidden states
            for `ip-adapter-plus`.
        text_width: width of the text embeddings Z^(T).
        token_width: width of P and S, the UNet's cross-attention width.
        channels: the UNet's `block_out_channels`.
        alpha, beta: the gate's constants (Eq. 5: both "initialized" towards 1; our choice 0.9, because exactly 1
            would never train the other branch).
        learnable_gate: alpha and beta are trained through a sigmoid instead.
        dial: the calibration curve: the gate's γ at evenly spaced γ of a user's from 0 to 1, measured after training
            so that the picture changes over all of the dial (`train.calibrate`); empty: a user's γ is the gate's, as
            in the paper.
    """

    kind: str = "flexip"
    width: int = 768
    depth: int = 4
    heads: int = 12
    head_width: int = 64
    feed_forward: int = 4
    queries: int = 16
    clip_width: int = 1024
    retrieval_width: int = 1024
    text_width: int = sd15.CONTEXT_WIDTH
    token_width: int = sd15.CONTEXT_WIDTH
    channels: tuple[int, ...] = sd15.UNET_WIDTHS
    alpha: float = 0.9
    beta: float = 0.9
    learnable_gate: bool = False
    dial: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise FlexIPError(f"{field.name} is {value!r}; expected a whole number of at least 1")
            largest = MAX_DEPTH if field.name == "depth" else MAX_SIZE
            if field.type == "int" and value > largest:
                raise FlexIPError(f"{field.name} is {value}; expected at most {largest}")
            if field.type == "float" and (not isinstance(value, (int, float)) or isinstance(value, bool)):
                raise FlexIPError(f"{field.name} is {value!r}; expected a number")
            if field.type == "bool" and not isinstance(value, bool):
                raise FlexIPError(f"{field.name} is {value!r}; expected true or false")
        for name in ("alpha", "beta"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise FlexIPError(f"{name} is {getattr(self, name)!r}; expected a number from 0 to 1 (Eq. 5)")
        if self.dial and (self.dial[0] != 0 or self.dial[-1] != 1 or not all(a <= b for a, b in pairwise(self.dial))):
            raise FlexIPError(f"dial is {self.dial!r}; expected numbers that rise from 0 to 1")
        if len(self.channels) != 4 or any(not isinstance(c, int) or not 1 <= c <= MAX_SIZE for c in self.channels):
            raise FlexIPError(f"channels is {self.channels!r}; expected four widths, one per level of the UNet")

    @property
    def calibration_in_words(self) -> str:
        """What the calibration curve makes of five γ, for people."""
        if not self.dial:
            return "not calibrated: γ is the gate's"
        shown = ", ".join(f"{self.dial[round(i / 4 * (len(self.dial) - 1))]:.3g}" for i in range(5))
        return f"calibrated: γ 0, 0.25, 0.5, 0.75, 1 are the gate's {shown}"

    def to_json(self) -> str:
        """The config as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> FlexIPConfig:
        """Read `to_json`'s form.

        Raises:
            FlexIPError: not JSON, an unknown or missing field, or a value out of its range.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise FlexIPError(f"the adapter's config is not JSON ({error}); the file is damaged") from error
        known = {field.name for field in fields(cls)}
        if isinstance(values, dict):
            values.setdefault("dial", [])  # files from before there was one
        if not isinstance(values, dict) or set(values) != known:
            found = set(values) if isinstance(values, dict) else set()
            raise FlexIPError(
                f"the adapter's config has unknown fields {sorted(found - known)} and lacks {sorted(known - found)}; "
                "it was written by another version"
            )
        for name in ("channels", "dial"):
            values[name] = tuple(values[name]) if isinstance(values[name], list) else ()
        return cls(**values)
