"""An exported folder read back, for reports, and what it draws with any adapter beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...common.device import pick_device
from ...encoders import load_clip, load_dino
from ...encoders.pair import Encoders, check_encoders
from ...files.adapter_file import build_adapter, load_adapter_file
from ...hosts.diffusers import Condition
from ...method.adapters import Adapter, ReferenceFeatures
from ...method.gate import gamma_tensor
from ..scenes.words import Words
from ..stages.base import Base
from ..stages.export import ADAPTER_FILE, ENCODER_FILES
from ..stages.sampling import draw

STEPS = 10
_CHUNK = {"cpu": 24, "cuda": 512}
"""Pictures that are drawn at once."""


@dataclass(frozen=True)
class References:
    """What an adapter makes of n references, and of none: its P, the [CLS] embeddings, and the adapter itself.

    Attributes:
        tokens: (n, N, W).
        cls: (n, C).
        null_tokens, null_cls: (1, N, W) and (1, C), for the negative half of guidance.
    """

    adapter: Adapter
    tokens: Tensor
    cls: Tensor
    null_tokens: Tensor
    null_cls: Tensor

    def condition(self, text: Tensor, rows: Sequence[int], values: Sequence[float]) -> Condition:
        """For prompts and as many negatives, text (2n, 77, W): which reference each prompt has, and its knob.

        The knob weighs P by itself and S by what is left to 1 (Eq. 4); of an adapter without S it is the published
        scale, so that 0 is the base alone.
        """
        count = len(rows)
        chosen = torch.tensor(list(rows), device=self.tokens.device)
        p = torch.cat([self.tokens[chosen], self.null_tokens.expand(count, -1, -1)])
        s = None
        if self.adapter.has_personalization:
            s = self.adapter.personalization(text, torch.cat([self.cls[chosen], self.null_cls.expand(count, -1)]))
        return Condition(p, s, gamma_tensor(list(values) * 2).to(text.device))


class Shipped:
    """The parts of an exported folder, in fp32, through the loaders that users' files go through.

    Args:
        device: the card where there is one, by default.

    Attributes:
        adapter: the exported one.
    """

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        self.device = device or pick_device("auto")
        self.words = Words(folder / "tokenizer")
        self.vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae").float().eval().requires_grad_(False)
        self.base = Base.__new__(Base)
        nn.Module.__init__(self.base)
        self.base.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float().eval()
        self.base.text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float().eval()
        clip = load_clip(folder / "encoders" / ENCODER_FILES["open_clip"]).float()
        dino = load_dino(folder / "encoders" / ENCODER_FILES["dinov2"]).float()
        self.encoders = Encoders(clip.to(self.device), dino.to(self.device))
        self.vae.to(self.device)
        self.base.requires_grad_(False).to(self.device)
        self.info, self.adapter = self.load(folder / ADAPTER_FILE)

    def load(self, path: Path) -> tuple[Any, Adapter]:
        """An adapter file that was trained beside this base: what it says of itself, and the adapter in fp32.

        Raises:
            FlexIPError: as `load_adapter_file`; it reads encoders of other widths.
        """
        info, tensors = load_adapter_file(path)
        assert self.encoders.dino is not None
        check_encoders(info.config, self.encoders.clip, self.encoders.dino)
        return info, build_adapter(info, {k: v.float() for k, v in tensors.items()}).to(self.device)

    def features(self, pictures: Tensor, kind: type[Adapter] | None = None) -> ReferenceFeatures:
        """What an adapter of a kind (the exported one's by default) reads of pictures, (n, 3, 128, 128) uint8."""
        images = pictures.to(self.device).float().permute(0, 2, 3, 1) / 255
        return self.encoders.encode(images, adapter=kind or type(self.adapter))

    @torch.no_grad()
    def references(self, pictures: Tensor, adapter: Adapter | None = None, without: Collection[str] = ()) -> References:
        """References, (n, 3, 128, 128) uint8, as an adapter reads them (the exported one by default).

        Args:
            without: "cls" or "queries", the tokens of P that the adapter was trained without.
        """
        adapter = adapter or self.adapter
        seen, null = self.features(pictures, type(adapter)), self.encoders.null(1, type(adapter))
        kept = slice(-1 if "queries" in without else None, -1 if "cls" in without else None)
        p, of_none = (adapter.preservation(features)[:, kept] for features in (seen, null))
        return References(adapter, p, seen.cls, of_none, null.cls)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        noise: Tensor,
        references: References | None = None,
        rows: Sequence[int] = (),
        values: Sequence[float] = (),
    ) -> Tensor:
        """One picture per prompt, (n, 3, 128, 128) uint8 on this model's device, drawn in parts.

        Args:
            noise: (n, 4, 16, 16), made on the CPU, so that every device begins from the same.
            rows, values: with `references`, which of them each prompt has and the knob.
        """
        found = []
        chunk = _CHUNK.get(self.device.type, 24)
        for start in range(0, len(prompts), chunk):
            part = slice(start, start + chunk)
            with_adapter: dict[str, Any] = {}
            if references is not None:
                of, knob = rows[part], values[part]
                with_adapter = {
                    "adapter": references.adapter,
                    "condition": lambda text, of=of, knob=knob: references.condition(text, of, knob),
                }
            pixels = draw(
                self.base, self.vae, self.words, prompts[part], noise[part], steps=STEPS, **with_adapter
            ).clamp(-1, 1)
            found.append(((pixels + 1) * 127.5).round().byte())
        return torch.cat(found)

    @torch.no_grad()
    def through_vae(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, 128, 128) uint8, encoded and decoded."""
        return through_vae(self.vae, pictures)


@torch.no_grad()
def through_vae(vae: Any, pictures: Tensor, chunk: int = 32) -> Tensor:
    """Pictures (n, 3, 128, 128) uint8, encoded and decoded on the VAE's device."""
    device = next(vae.parameters()).device
    found = []
    for part in pictures.split(chunk):
        code = vae.encode(part.to(device).float() / 127.5 - 1).latent_dist.mean
        found.append(((vae.decode(code).sample.clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(found)


def noises(count: int, seed: int) -> Tensor:
    """`count` noises, (count, 4, 16, 16), on the CPU."""
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
