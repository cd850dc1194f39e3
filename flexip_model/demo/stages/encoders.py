"""The tiny encoders, both from nothing but this data.

CLIP-like: the picture tower against the frozen text encoder (symmetric InfoNCE with the prompts), and against the
tower's view of another picture of the same subject in the same colors, so that [CLS] says what the subject is and how
it looks. DINO-like: in half of the pictures 40 % of the patches are masked; every patch token must tell, through one
linear layer, its own pixels, which of them belong to the subject, the VAE's latent there, and where in the picture it
lies. Linear, so that the tokens hold looks and places in a form that an adapter can use: without the last, tokens of a
short training know what they show but not where.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...encoders.formats import DINO_MODULES
from ...images.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalize
from .networks import ENCODER_SIDE, ENCODER_WIDTH, GRID, TEXT_WIDTH, build_clip_vision, build_dino

_CELL = ENCODER_SIDE // GRID
_CODE = 3.0
"""How much the VAE's latent counts among what a patch token must tell."""


def fit(pixels: Tensor) -> Tensor:
    """Square pictures (n, 3, s, s) in [-1, 1] as `preprocess.prepare` gives them: (n, 3, 112, 112) in [0, 1]."""
    return F.interpolate((pixels + 1) / 2, ENCODER_SIDE, mode="bicubic", antialias=True).clamp(0, 1)


class SightTrainer(nn.Module):
    """Picture tower of the contrastive stage; the text encoder is made and frozen, its projection is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = build_clip_vision()
        self.project_text = nn.Linear(TEXT_WIDTH, ENCODER_WIDTH, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6))

    def losses(self, pixels: Tensor, other: Tensor, text: Tensor) -> dict[str, Tensor]:
        """InfoNCE of pictures (n, 3, s, s) in [-1, 1] with the text encoder's final states of their prompts (n, 128),
        and with other pictures of their subjects; and "loss"."""
        seen, again = (
            F.normalize(self.visual(normalize(fit(p), CLIP_MEAN, CLIP_STD)), dim=-1) for p in (pixels, other)
        )
        told = F.normalize(self.project_text(text), dim=-1)
        scale = self.logit_scale.clamp(max=4.0).exp()
        to_text, to_other = _contrast(seen, told, scale), _contrast(seen, again, scale)
        return {"loss": to_text + to_other, "text": to_text, "other": to_other}


def _contrast(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    logits, truth = scale * a @ b.t(), torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.t(), truth)) / 2


class DinoTrainer(nn.Module):
    """The encoder and its linear probes: of every patch its RGB values and the subject's share, its latent, and its
    row and column."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_dino()
        self.read = nn.Linear(ENCODER_WIDTH, 4 * _CELL * _CELL)
        self.latent = nn.Linear(ENCODER_WIDTH, 4)
        self.place = nn.Linear(ENCODER_WIDTH, 2 * GRID)

    def losses(self, pixels: Tensor, alpha: Tensor, masked: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Errors of what the probes say, and "loss".

        Args:
            pixels: (n, 3, s, s) in [-1, 1].
            alpha: (n, 1, s, s) in [0, 1], the subject's.
            masked: (n, 256) bool, the patches that the encoder does not see.
            latents: the VAE's of the first pictures, which have no masked patch, (m, 4, 16, 16).
        """
        batch, shown = len(pixels), len(latents)
        out, guessed, where = self(pixels, masked)
        target = patch_targets(pixels, alpha)
        color, truth = out[..., : 3 * _CELL**2], target[..., : 3 * _CELL**2]
        share = target[..., 3 * _CELL**2 :]
        weight = (0.15 + share).repeat(1, 1, 3)
        looks = (weight * (color - truth).abs()).mean()
        mask = F.binary_cross_entropy_with_logits(out[..., 3 * _CELL**2 :], share)
        grid = torch.arange(GRID, device=pixels.device)
        row, column = (places.repeat(batch) for places in (grid.repeat_interleave(GRID), grid.repeat(GRID)))
        where = where.flatten(0, 1)
        place = F.cross_entropy(where[:, :GRID], row) + F.cross_entropy(where[:, GRID:], column)
        error = (guessed[:shown] - latents.flatten(2).transpose(1, 2)).pow(2).mean(-1)
        code = (error * (0.15 + share[:shown].mean(-1))).mean()
        loss = looks + 0.3 * mask + 0.2 * place + _CODE * code
        return {"loss": loss, "looks": looks, "mask": mask, "place": place, "code": code}

    def forward(self, pixels: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (n, 3, s, s) and a mask (n, 256) to what the probes say: (n, 256, 196), (n, 256, 4) and
        (n, 256, 32)."""
        seen = normalize(fit(pixels), IMAGENET_MEAN, IMAGENET_STD)
        tokens = self.encoder(seen, bool_masked_pos=masked).last_hidden_state[:, 1:]
        return self.read(tokens), self.latent(tokens), self.place(tokens)


def patch_targets(pixels: Tensor, alpha: Tensor) -> Tensor:
    """(n, 3, s, s) in [-1, 1] and (n, 1, s, s) in [0, 1] to (n, 256, 196): each patch's 7 × 7 pixels."""
    both = F.interpolate(torch.cat([pixels, alpha], 1), ENCODER_SIDE, mode="area")
    return F.unfold(both, _CELL, stride=_CELL).transpose(1, 2)


def names_in_files(network: nn.Module) -> dict[str, str]:
    """A network's keys and what they are called in files: transformers 5 renamed modules of DINOv2, and a file that a
    machine with another version wrote must be readable here, and be the same."""
    names = {key: key for key in network.state_dict()}
    for hub, library in DINO_MODULES.items():
        names = {key: name.replace(library, hub) for key, name in names.items()}
    return names
