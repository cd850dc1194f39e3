"""A base, with what is added to it, that draws: for benchmarks and for the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...common.errors import FlexIPError
from ...hosts.denoise import denoise
from ...images.preprocess import AS_TRAINED, trained_crop
from .base import load_base
from .gated import Gated
from .own_ip_adapter import OwnIPAdapter
from .plan import Wanted


@dataclass(frozen=True)
class Files:
    """What draws.

    Attributes:
        base, base_configs: see `load_base`.
        adapter: an adapter file of the pack or an IP-Adapter(-Plus) file, drawn by this pack with
        clip, dino: its encoders' files.
        ip_adapter: an IP-Adapter(-Plus) file, drawn by diffusers' own IP-Adapter with
        image_encoder: the folder of its encoder. Without either kind of adapter the base alone draws.

    Raises:
        FlexIPError: both kinds at once.
    """

    base: Path
    base_configs: Path | None = None
    adapter: Path | None = None
    clip: Path | None = None
    dino: Path | None = None
    ip_adapter: Path | None = None
    image_encoder: Path | None = None

    def __post_init__(self) -> None:
        if self.adapter is not None and self.ip_adapter is not None:
            raise FlexIPError(
                "--adapter (drawn by this pack) and --ip-adapter (drawn by diffusers) are both named; draw one after "
                "the other, each into its own folder"
            )


@dataclass(frozen=True)
class Sampling:
    """How it draws.

    Attributes:
        steps, guidance: of DDIM; the paper's are 50 and 7.5 (App. B.1).
        size: pixels of a side; None takes the base's own.
        crop: of the reference: one of `images.preprocess.CROPS`, or `AS_TRAINED`.
    """

    steps: int = 50
    guidance: float = 7.5
    size: int | None = None
    crop: str = AS_TRAINED


class Addition(Protocol):
    """What is added to a base; see `Gated`."""

    @property
    def knob(self) -> str: ...
    @property
    def one_value(self) -> bool: ...
    @property
    def record(self) -> dict[str, Any]: ...
    def adding(self, wanted: Sequence[Wanted], text: Tensor) -> AbstractContextManager[dict[str, Any]]: ...


class Drawer:
    """A base with or without an adapter, in half precision on a GPU.

    Raises:
        FlexIPError: what is named is missing, of another kind, or does not fit together.
    """

    def __init__(self, files: Files, sampling: Sampling, device: torch.device) -> None:
        self.sampling, self.device = sampling, device
        self.base = load_base(files.base, files.base_configs)
        self.base.to(device, torch.float16 if device.type == "cuda" else torch.float32)
        self.size = sampling.size or self.base.size
        if self.size % self.base.scale:
            raise FlexIPError(f"--size is {self.size}; expected a multiple of {self.base.scale}")
        self.addition: Addition | None = None
        if files.adapter is not None:
            self.addition = Gated(self.base, files.adapter, files.clip, files.dino, sampling.crop, device)
        elif files.ip_adapter is not None:
            self.addition = OwnIPAdapter(self.base, files.ip_adapter, files.image_encoder, sampling.crop, device)

    @property
    def knob(self) -> str | None:
        """`gamma`; `scale` of an IP-Adapter; None without an adapter."""
        return None if self.addition is None else self.addition.knob

    @property
    def one_value(self) -> bool:
        """Whether all of a batch must have one value of the knob."""
        return self.addition is not None and self.addition.one_value

    def record(self) -> dict[str, Any]:
        """What a picture's manifest says of how it was drawn."""
        return {
            "base": self.base.hash,
            "adapter": "",
            "steps": self.sampling.steps,
            "guidance": self.sampling.guidance,
            "size": self.size,
            "crop": trained_crop(None, masked=False) if self.sampling.crop == AS_TRAINED else self.sampling.crop,
            "sampler": "DDIM",
            **({} if self.addition is None else self.addition.record),
        }

    def draw(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        """Pixels (3, S, S) in [0, 1] of pictures of one strength (and see `one_value`). A picture's noise hangs on its
        seed alone."""
        text = self.base.read([one.prompt for one in wanted] + [""] * len(wanted))
        side = self.size // self.base.scale
        noise = torch.stack(
            [torch.randn(4, side, side, generator=torch.Generator().manual_seed(one.seed)) for one in wanted]
        )
        with nullcontext({}) if self.addition is None else self.addition.adding(wanted, text) as more:
            latents = denoise(
                self.base.unet,
                self.base.scheduler,
                noise.to(self.device),
                text,
                steps=self.sampling.steps,
                guidance=self.sampling.guidance,
                **more,
            )
        return list(self.base.decode(latents))
