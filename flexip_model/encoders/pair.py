"""Both encoders at work: a reference picture to features, the same preprocessing for trainer and nodes.

Letters: B batch, M retrieval tokens, S an encoder's picture size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..common.errors import FlexIPError
from ..images.pictures import Images, Masks
from ..images.preprocess import Box, Prepared, keep_patches, normalize, prepare, preview
from ..method.adapters import Adapter, FlexIPAdapter, ReferenceFeatures, adapter_class
from ..method.config import FlexIPConfig
from .clip import ClipEncoder
from .dino import DinoEncoder

NO_DINO = "a FlexIP adapter needs a DINO encoder beside CLIP; load DINOv2-L/14 too"


@dataclass(frozen=True, eq=False)
class Views:
    """B pictures as each encoder sees them; one object for both where their picture sizes are equal."""

    clip: Prepared
    dino: Prepared

    def __len__(self) -> int:
        return len(self.clip.pixels)

    def __getitem__(self, index: int) -> Views:
        """The view of one picture, B = 1."""
        clip = self.clip.picture(index)
        return Views(clip, clip if self.dino is self.clip else self.dino.picture(index))


class Encoders:
    """The CLIP and the DINO encoder, two modules that the caller may move and cast; features come out as float32.

    Attributes:
        clip: always.
        dino: None is enough for an imported IP-Adapter.
    """

    def __init__(self, clip: ClipEncoder, dino: DinoEncoder | None = None) -> None:
        self.clip, self.dino = clip, dino

    def look(self, images: Images, mask: Masks = None, crop: str | Box = "center") -> Views:
        """Prepare pictures, once where both encoders have one picture size.

        Args:
            images, mask, crop: see `preprocess.prepare`.

        Raises:
            FlexIPError: what `preprocess.prepare` raises.
        """
        seen = prepare(images, self.clip.image_size, mask, crop)
        if self.dino is None or self.dino.image_size == self.clip.image_size:
            return Views(seen, seen)
        return Views(seen, prepare(images, self.dino.image_size, mask, crop))

    @torch.no_grad()
    def features(self, views: Views, adapter: type[Adapter] = FlexIPAdapter) -> ReferenceFeatures:
        """What an adapter of this kind reads of each picture.

        Returns:
            float32 features, each on its own encoder's device; `keep` beside `patches`.

        Raises:
            FlexIPError: there is no DINO encoder where one is needed.
        """
        return adapter.features(_Outputs(self, views))

    def encode(
        self,
        images: Images,
        mask: Masks = None,
        crop: str | Box = "center",
        adapter: type[Adapter] = FlexIPAdapter,
    ) -> ReferenceFeatures:
        """`look` and `features` in one."""
        return self.features(self.look(images, mask, crop), adapter)

    @torch.no_grad()
    def null(self, batch: int, adapter: type[Adapter] = FlexIPAdapter) -> ReferenceFeatures:
        """The null image of an adapter kind, for the negative half of guidance (`EncoderOutputs` says what it is)."""
        return adapter.features(_NullOutputs(self, batch))

    def preview(self, views: Views) -> Tensor:
        """What the encoders see, as a picture: (B, S, S, 3) float32 in [0, 1]; dropped patches are dimmed."""
        return preview(views.dino, (self.dino or self.clip).patch)

    def need_dino(self) -> DinoEncoder:
        """The DINO encoder.

        Raises:
            FlexIPError: there is none.
        """
        if self.dino is None:
            raise FlexIPError(NO_DINO)
        return self.dino


class _Outputs:
    """`EncoderOutputs` of pictures."""

    def __init__(self, encoders: Encoders, views: Views) -> None:
        self.encoders, self.views = encoders, views
        self._cls: Tensor | None = None

    def clip_hidden(self) -> tuple[Tensor, Tensor | None]:
        clip = self.encoders.clip
        found = clip(encoder_input(self.views.clip.pixels, clip), hidden=True)
        self._cls = found.cls.float()  # the same pass: where both are asked for, hidden states first
        keep = keep_patches(self.views.clip.subject, clip.patch)
        if keep is not None:
            keep = torch.cat([keep.new_ones(len(keep), 1), keep], dim=1).to(self._cls.device)
        return found.hidden.float(), keep

    def clip_cls(self) -> Tensor:
        if self._cls is None:
            self._cls = self.encoders.clip(encoder_input(self.views.clip.pixels, self.encoders.clip)).cls.float()
        return self._cls

    def dino_patches(self) -> tuple[Tensor, Tensor | None]:
        dino = self.encoders.need_dino()
        patches = dino(encoder_input(self.views.dino.pixels, dino)).float()
        keep = keep_patches(self.views.dino.subject, dino.patch)
        return patches, None if keep is None else keep.to(patches.device)


class _NullOutputs:
    """`EncoderOutputs` of no reference: zero embeddings and patches, the hidden states of an all-zero input.

    IP-Adapter and IP-Adapter-Plus were trained with these; zero patches are our choice.
    """

    def __init__(self, encoders: Encoders, batch: int) -> None:
        self.encoders, self.batch = encoders, batch

    def clip_hidden(self) -> tuple[Tensor, Tensor | None]:
        clip = self.encoders.clip
        zeros = torch.zeros(1, 3, clip.image_size, clip.image_size)
        hidden = clip(encoder_input(zeros, clip, raw=True), hidden=True).hidden
        return hidden.float().expand(self.batch, -1, -1), None

    def clip_cls(self) -> Tensor:
        return torch.zeros(self.batch, self.encoders.clip.width, device=_device(self.encoders.clip))

    def dino_patches(self) -> tuple[Tensor, Tensor | None]:
        dino = self.encoders.need_dino()
        return torch.zeros(self.batch, dino.tokens, dino.width, device=_device(dino)), None


def check_encoders(config: FlexIPConfig, clip: ClipEncoder, dino: DinoEncoder | None) -> None:
    """Check that the encoders' widths are those that the adapter was made for.

    Raises:
        FlexIPError: they are not, or DINO is missing; both sides are named.
    """
    wanted = adapter_class(config).widths(config)
    pairs = [
        ("[CLS] embedding", clip.name, clip.width, wanted.clip_cls),
        ("hidden states", clip.name, clip.hidden_width, wanted.clip_hidden),
    ]
    if wanted.dino_patches is not None:
        if dino is None:
            raise FlexIPError(NO_DINO)
        pairs.append(("patch tokens", dino.name, dino.width, wanted.dino_patches))
    for what, name, found, width in pairs:
        if width is not None and found != width:
            raise FlexIPError(
                f"the {what} of the encoder {name} are {found} wide and the adapter ({config.kind}) reads {width}; "
                "load the encoders that the adapter was trained with"
            )


def other_weights(made_for: Mapping[str, Mapping[str, str]], clip: ClipEncoder, dino: DinoEncoder | None) -> list[str]:
    """A sentence for each encoder whose weights are not those that an adapter's file names.

    A warning, not an error: the same weights rounded to another dtype have another hash too.

    Args:
        made_for: `AdapterInfo.encoders`; where a hash is missing or empty nothing is said.
    """
    found = []
    for role, encoder in (("clip", clip), ("retrieval", dino)):
        entry = made_for.get(role, {})
        if encoder is not None and entry.get("hash") and entry["hash"] != encoder.weights_hash:
            found.append(
                f"the weights of the encoder {encoder.name} ({encoder.weights_hash}) are not those that the "
                f"adapter was trained with, {entry.get('name', role)} ({entry['hash']}); unless they are the "
                "same in another precision, load those: with others the pictures mean little"
            )
    return found


def encoder_input(pixels: Tensor, encoder: ClipEncoder | DinoEncoder, raw: bool = False) -> Tensor:
    """Pixels as the encoder takes them: normalized (unless raw), in its parameters' dtype and on their device."""
    weight: nn.Parameter = next(encoder.parameters())
    pixels = pixels.to(weight.device)
    return (pixels if raw else normalize(pixels, encoder.mean, encoder.std)).to(weight.dtype)


def _device(encoder: ClipEncoder | DinoEncoder) -> torch.device:
    return next(encoder.parameters()).device
