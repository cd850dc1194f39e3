"""Both encoders at work: a reference picture to features, the same preprocessing for trainer and nodes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..common.errors import FlexIPError
from ..images.pictures import Images, Masks
from ..images.preprocess import Box, keep_patches, normalize, prepare, preview
from ..method.adapter import ReferenceFeatures
from ..method.config import FlexIPConfig
from .clip import ClipEncoder
from .dino import DinoEncoder


class Encoders:
    """The CLIP and the DINO encoder, two modules that the caller may move and cast; features come out as float32.

    Attributes:
        clip: always.
        dino: None is enough for an imported IP-Adapter.
    """

    def __init__(self, clip: ClipEncoder, dino: DinoEncoder | None = None) -> None:
        self.clip, self.dino = clip, dino

    @torch.no_grad()
    def encode(
        self,
        images: Images,
        mask: Masks = None,
        crop: str | Box = "center",
        kind: str = "flexip",
    ) -> ReferenceFeatures:
        """What the adapter reads of each picture.

        Args:
            images, mask, crop: see `preprocess.prepare`.
            kind: the adapter's (`FlexIPConfig.kind`): `flexip` takes DINO's patches; `ip-adapter-plus` CLIP's hidden
                states instead; `ip-adapter` reads the [CLS] alone, and `patches` is (B, 0, hidden_width).

        Returns:
            float32 features, each on its own encoder's device; `keep` beside `patches`.

        Raises:
            FlexIPError: what `preprocess.prepare` raises; no DINO encoder where one is needed.
        """
        seen = prepare(images, self.clip.image_size, mask, crop)
        found = self.clip(_input(seen.pixels, self.clip), hidden=kind == "ip-adapter-plus")
        cls = found.cls.float()
        if kind == "ip-adapter":
            return ReferenceFeatures(cls, cls.new_zeros(len(cls), 0, self.clip.hidden_width))
        if kind == "ip-adapter-plus":
            keep = keep_patches(seen.subject, self.clip.patch)
            if keep is not None:
                keep = torch.cat([keep.new_ones(len(keep), 1), keep], dim=1).to(cls.device)
            return ReferenceFeatures(cls, found.hidden.float(), keep)
        dino = self._dino()
        if dino.image_size != self.clip.image_size:
            seen = prepare(images, dino.image_size, mask, crop)
        patches = dino(_input(seen.pixels, dino)).float()
        keep = keep_patches(seen.subject, dino.patch)
        return ReferenceFeatures(cls, patches, None if keep is None else keep.to(patches.device))

    @torch.no_grad()
    def null(self, batch: int, kind: str = "flexip") -> ReferenceFeatures:
        """The null image of an adapter kind, for the negative half of guidance.

        `flexip`: zero features (`FlexIPAdapter.null_features`). `ip-adapter`: a zero embedding. `ip-adapter-plus`: the
        hidden states of an all-zero input, after normalization. The last two are what IP-Adapter was trained with.
        """
        device = next(self.clip.parameters()).device
        cls = torch.zeros(batch, self.clip.width, device=device)
        if kind == "ip-adapter":
            return ReferenceFeatures(cls, cls.new_zeros(batch, 0, self.clip.hidden_width))
        if kind == "ip-adapter-plus":
            size = self.clip.image_size
            hidden = self.clip(_input(cls.new_zeros(1, 3, size, size), self.clip, raw=True), hidden=True).hidden
            return ReferenceFeatures(cls, hidden.float().expand(batch, -1, -1))
        dino = self._dino()
        where = next(dino.parameters()).device
        return ReferenceFeatures(cls, torch.zeros(batch, dino.tokens, dino.width, device=where))

    def preview(self, images: Images, mask: Masks = None, crop: str | Box = "center") -> Tensor:
        """What the encoders see, as a picture: (B, S, S, 3) float32 in [0, 1]; dropped patches are dimmed."""
        encoder = self.dino or self.clip
        return preview(prepare(images, encoder.image_size, mask, crop), encoder.patch)

    def _dino(self) -> DinoEncoder:
        if self.dino is None:
            raise FlexIPError("a FlexIP adapter needs a DINO encoder beside CLIP; load DINOv2-L/14 too")
        return self.dino


def check_encoders(config: FlexIPConfig, clip: ClipEncoder, dino: DinoEncoder | None) -> None:
    """Check that the encoders' widths are those that the adapter was made for.

    Raises:
        FlexIPError: they are not, or DINO is missing; both sides are named.
    """
    pairs: list[tuple[str, str, int, int]] = []
    if config.kind != "ip-adapter-plus":
        pairs.append(("[CLS] embedding", clip.name, clip.width, config.clip_width))
    else:
        pairs.append(("hidden states", clip.name, clip.hidden_width, config.retrieval_width))
    if config.kind == "flexip":
        if dino is None:
            raise FlexIPError("a FlexIP adapter needs a DINO encoder beside CLIP; load DINOv2-L/14 too")
        pairs.append(("patch tokens", dino.name, dino.width, config.retrieval_width))
    for what, name, found, wanted in pairs:
        if found != wanted:
            raise FlexIPError(
                f"the {what} of the encoder {name} are {found} wide and the adapter ({config.kind}) reads {wanted}; "
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


def _input(pixels: Tensor, encoder: ClipEncoder | DinoEncoder, raw: bool = False) -> Tensor:
    """Pixels as the encoder takes them: normalized (unless raw), in its parameters' dtype and on their device."""
    weight: nn.Parameter = next(encoder.parameters())
    pixels = pixels.to(weight.device)
    return (pixels if raw else normalize(pixels, encoder.mean, encoder.std)).to(weight.dtype)
