"""P's queries learn to hold the subject's look, place by place, before a UNet has to read it.

Through one linear layer the query of every place must tell the reference's latent there, where the subject is, and the
subject's share. The layer is thrown away afterwards. Our choice, for want of compute: this is a hundred times cheaper
per sample than the UNet, whose attention would otherwise wait for tokens worth reading while the tokens wait for a
reader.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...method.adapters import FlexIPAdapter
from .networks import ADAPTER, GRID, place_waves


class Reader(nn.Module):
    """A new adapter's way from a reference's patches to P's queries, and the linear layer that reads them."""

    def __init__(self) -> None:
        super().__init__()
        adapter = FlexIPAdapter(ADAPTER)
        place_queries(adapter)
        self.project_retrieval, self.queries = adapter.project_retrieval, adapter.queries
        self.resampler_queries = adapter.resampler_queries
        self.read = nn.Linear(ADAPTER.width, 5)

    def tokens(self, patches: Tensor) -> Tensor:
        """P's queries of references' patches (n, 256, 128), (n, 256, 128)."""
        tokens: Tensor = self.resampler_queries(
            self.queries.expand(len(patches), -1, -1), self.project_retrieval(patches)
        )
        return tokens

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """What the queries say of every place of references, patches (n, 256, 128): latents (n, 4, 16, 16) and logits
        of the subject's share (n, 16, 16)."""
        told = self.read(self.tokens(patches)).unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
        return told[:, :4], told[:, 4]

    def losses(self, patches: Tensor, latents: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Of references that are the targets' own pictures: latents (n, 4, 16, 16), mask (n, 16, 16)."""
        said, share = self(patches)
        looks = ((said - latents).pow(2).mean(1) * mask).sum() / mask.sum()
        shape = F.binary_cross_entropy_with_logits(share, mask)
        return {"loss": looks + shape, "looks": looks, "shape": shape}

    def give(self, adapter: FlexIPAdapter) -> None:
        """Put what was learned into an adapter with as many queries."""
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("read.")}
        adapter.load_state_dict({**adapter.state_dict(), **weights})


@torch.no_grad()
def place_queries(adapter: nn.Module) -> None:
    """Let each learned query of a square number begin with a place of its own in the grid of the latents."""
    queries = getattr(adapter, "queries", None)
    if isinstance(queries, nn.Parameter):
        side = round(queries.shape[1] ** 0.5)
        if side**2 == queries.shape[1]:
            queries[0] += place_waves(side, queries.shape[2])
