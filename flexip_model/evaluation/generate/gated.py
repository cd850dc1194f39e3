"""The pack's own adapters through the diffusers host: FlexIP, and imported IP-Adapters."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import FlexIPError
from ...encoders import Encoders, check_encoders, load_clip, load_dino, other_weights
from ...files.adapter_file import build_adapter, load_adapter_file
from ...files.ip_adapter import convert_ip_adapter
from ...files.safefile import read_header, sha256
from ...hosts.condition import Condition
from ...hosts.diffusers import inject
from ...images.preprocess import AS_TRAINED, trained_crop
from ...method.adapters import Adapter, ReferenceFeatures, create_adapter
from ...method.gate import gamma_tensor
from ..reading import read_picture
from .base import Base
from .plan import Wanted

log = logging.getLogger(__name__)
CLIP_SOURCE = "OpenCLIP ViT-H/14, models/image_encoder/model.safetensors of huggingface.co/h94/IP-Adapter"
DINO_SOURCE = "DINOv2-L/14, model.safetensors of huggingface.co/facebook/dinov2-large"
"""What SD1.5's adapters read (App. B.1), and where it can be had; no package registry has it."""


class Gated:
    """An adapter of this pack on a base.

    Attributes:
        knob: `gamma`; `scale` for an imported IP-Adapter, whose γ is its scale.
        one_value: whether a batch must be of one value; here each picture has its own.
        record: what a picture's manifest says of it.
    """

    one_value = False

    def __init__(
        self, base: Base, file: Path, clip: Path | None, dino: Path | None, crop: str, device: torch.device
    ) -> None:
        self.base, self.device = base, device
        if "flexip.format_version" in read_header(file).metadata:
            info, tensors = load_adapter_file(file)
            self.adapter, made_for, recorded = build_adapter(info, tensors), info.encoders, info.crop
            if not info.trained:
                log.warning(f"warning: {file} was never trained: a bootstrap, whose pictures mean nothing")
        else:
            config, tensors, origin = convert_ip_adapter(file)
            self.adapter, made_for, recorded = create_adapter(config), {}, origin["references"]["crop"]
            self.adapter.load_state_dict(tensors)
        self.crop = trained_crop(recorded, masked=False) if crop == AS_TRAINED else crop
        self.adapter.float().to(device).eval().requires_grad_(False)
        self.encoders = _load_encoders(self.adapter, clip, dino)
        both = [encoder for encoder in (self.encoders.clip, self.encoders.dino) if encoder is not None]
        for encoder in both:
            encoder.float().to(device)
        for warning in other_weights(made_for, self.encoders.clip, self.encoders.dino):
            log.warning(f"warning: {warning}")
        self.knob = "gamma" if self.adapter.has_personalization else "scale"
        hashes = dict(zip(("clip", "dino"), (encoder.weights_hash for encoder in both), strict=False))
        self.record: dict[str, Any] = {"adapter": sha256(file), "crop": self.crop, "encoders": hashes}
        self._features: dict[Path, ReferenceFeatures] = {}

    @contextmanager
    def adding(self, wanted: Sequence[Wanted], text: Tensor) -> Iterator[dict[str, Any]]:
        """Within, the base's UNet draws these, each with its own γ and all with the first one's strength.

        Args:
            text: (2B, 77, W), what to draw and what not to draw.
        """
        host = inject(self.base.unet, self.adapter)
        try:
            host.condition = self._condition(wanted, text)
            yield {}
        finally:
            host.eject()

    @torch.no_grad()
    def _condition(self, wanted: Sequence[Wanted], text: Tensor) -> Condition:
        adapter, found = self.adapter, [self._reference(one.reference) for one in wanted]
        null = self.encoders.null(len(wanted), type(adapter))
        features = ReferenceFeatures(
            torch.cat([*(f.cls for f in found), null.cls]).to(self.device),
            torch.cat([*(f.patches for f in found), null.patches]).to(self.device),
            _keep(found),
        )
        s = adapter.personalization(text.float(), features.cls) if adapter.has_personalization else None
        gammas = gamma_tensor([one.value for one in wanted] * 2).to(self.device)
        return Condition(adapter.preservation(features), s, gammas, wanted[0].strength)

    def _reference(self, path: Path) -> ReferenceFeatures:
        if path not in self._features:
            self._features[path] = self.encoders.encode(read_picture(path), crop=self.crop, adapter=type(self.adapter))
        return self._features[path]


def _load_encoders(adapter: Adapter, clip: Path | None, dino: Path | None) -> Encoders:
    """The encoders that an adapter reads, on the CPU in their files' dtypes.

    Raises:
        FlexIPError: one is not named or not there (what is wanted, and from where), or is another.
    """
    wanted = {"--clip": (clip, CLIP_SOURCE)}
    if adapter.widths(adapter.config).dino_patches is not None:
        wanted["--dino"] = (dino, DINO_SOURCE)
    lost = [path for path, _ in wanted.values() if path is not None and not path.is_file()]
    if lost or any(path is None for path, _ in wanted.values()):
        what = f"there is no file {lost[0]}; " if lost else ""
        raise FlexIPError(
            f"{what}an adapter of kind {adapter.kind} needs its encoders: name "
            f"{' and '.join(f'{flag} FILE' for flag in wanted)} (for SD1.5: "
            f"{'; '.join(source for _, source in wanted.values())})"
        )
    assert clip is not None
    loaded = load_clip(clip), load_dino(dino) if dino is not None and "--dino" in wanted else None
    check_encoders(adapter.config, *loaded)
    return Encoders(*loaded)


def _keep(found: Sequence[ReferenceFeatures]) -> Tensor | None:
    """Which patches count, for the references and as many null images, of which all do; None where all do."""
    if all(features.keep is None for features in found):
        return None
    every = [torch.ones(f.patches.shape[:2], dtype=torch.bool, device=f.patches.device) for f in found]
    own = [one if f.keep is None else f.keep for f, one in zip(found, every, strict=True)]
    return torch.cat([*own, *every])
