"""Looking inside while the model runs: what each layer attends to, by run, so that a later node can draw it (Fig. 7).

A recording outlives the runs that fill it, as their pictures do: ComfyUI keeps it with the output of the node that made
it. Which run a picture came of is found by the latent that the run gave out, never by order: a sampler whose result is
cached does not run again.

Letters: R rows of the model's batch, L queries of a layer, C its width, B pictures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...flexip_model.common.errors import FlexIPError
from ...flexip_model.method.inside.maps import Attended
from ...flexip_model.method.inside.record import AttentionRecord
from ...flexip_model.method.sites import Site
from ..wires import LoadedAdapter

LOOK = "flexip_look"
"""The key of the run that is looked at, in the options of that run."""
KEPT = 4
"""Runs that a recording keeps, the latest (our choice; 0.55 MB for each step and picture)."""
CLOSE = 1e-2
"""How far a latent may be from the run's own, as a share of its largest value: hosts may store it in half precision."""


class Look:
    """One run that is looked at: the maps of its prompt's rows.

    Attributes:
        record: what was seen.
        result: the latents that the run gave out, on the CPU; None while it runs.
        problem: why the maps do not show the whole picture, as a sentence; empty where they do.
    """

    def __init__(self, loaded: LoadedAdapter, size: tuple[int, int]) -> None:
        self.record = AttentionRecord(loaded.adapter)
        self.result: Tensor | None = None
        self.problem = ""
        self._size, self._sigma = size, float("nan")

    def begin_forward(self, sigma: float) -> None:
        """A forward of the model at this noise level; another level than the last one's is another step."""
        if sigma != self._sigma:
            self.record.begin_step()
            self._sigma = sigma

    def rows(self, options: dict[str, Any], x: Tensor, pictures: tuple[tuple[int, int], ...]) -> dict[int, int]:
        """The rows of a forward that belong to the prompt, each with the number of its picture."""
        if x.shape[-2:] != self._size:
            self.problem = "the model was run on parts of the picture (areas, tiles)"
            return {}
        conds = options.get("cond_or_uncond", [0])
        each = len(x) // len(conds)
        return {row: pictures[row][0] for row in range(len(x)) if conds[min(row // each, len(conds) - 1)] == 0}

    @torch.compiler.disable
    def add(self, site: Site, q: Tensor, branches: dict[str, Attended], *, heads: int, rows: dict[int, int]) -> None:
        """Note one layer: queries (R, L, C), and what they attend to."""
        grid = site.grid(*self._size)
        if rows and (grid[0] * grid[1] != q.shape[1] or max(rows) >= len(q)):
            self.problem = "another node changes the tokens or the rows of the model's layers"
            return
        for row, picture in rows.items():
            own = {name: attended.of_rows(row) for name, attended in branches.items()}
            self.record.add(site, q[row : row + 1], own, heads=heads, grid=grid, pictures=(picture,))


class Recording:
    """What was seen in the latest runs of a model, and around which runs to look.

    Args:
        loaded: the adapter whose tokens are looked at.
    """

    def __init__(self, loaded: LoadedAdapter) -> None:
        self.loaded = loaded
        self.runs: list[Look] = []

    def __deepcopy__(self, memo: dict) -> Recording:
        return self

    def around_run(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE: look at this run. An interrupted one leaves nothing."""
        guider, noise = executor.class_obj, args[0] if args else kwargs["noise"]
        options = guider.model_options.setdefault("transformer_options", {})
        look = Look(self.loaded, tuple(noise.shape[-2:]))
        options[LOOK] = {**options.get(LOOK, {}), self.loaded.tag: look}
        result = executor(*args, **kwargs)
        look.result = result.detach().cpu()
        self.runs = [*self.runs[1 - KEPT :], look]
        return result

    def of(self, latent: Tensor) -> AttentionRecord:
        """What was seen in the run that gave out this latent, (B, 4, h, w).

        Raises:
            FlexIPError: none of the runs that are kept gave it out, or it was not seen as a whole.
        """
        for look in reversed(self.runs):
            if look.result is not None and look.result.shape == latent.shape:
                own, given = look.result.float(), latent.detach().cpu().float()
                if bool((own - given).abs().max() <= CLOSE * own.abs().max()):
                    if look.problem:
                        raise FlexIPError(f"there are no maps of this picture: {look.problem}; remove that node")
                    return look.record
        raise FlexIPError(
            "no run that was recorded made this latent; connect the sampler's own output, of the sampler that has the "
            "model of FlexIP Record Attention; where they are connected, ComfyUI kept the picture and not the "
            "recording: change the sampler's seed to make it anew"
        )
