"""The groups of a run's data folders, by kind, with what the caches hold of their frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...common.errors import FlexIPError
from ...data.cache.manifest import CacheReader, check_cache, clip_manifest, dino_manifest, list_caches
from ...data.format import Dataset
from ...data.format.captions import CaptionCount, count_captions
from ..configs.options import TrainConfig
from ..frozen import Frozen
from .identity import identity

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...data.format import Frame, Group

KINDS_BY_SIDE = (("image",), ("multiview", "video", "pair"))
"""Kinds of groups on either side of the gate: γ = α, and γ = 1 − β (Eq. 5)."""
TARGET = ("any", "target")
"""Roles of frames that may be a target."""


@dataclass(frozen=True)
class Subject:
    """A group and the folder that its pictures lie in."""

    group: Group
    folder: Dataset
    caches: Mapping[str, CacheReader]

    def picture(self, frame: Frame) -> Image:
        """The picture, RGB."""
        return self.folder.picture(frame)

    def mask(self, frame: Frame) -> Tensor | None:
        """The subject's mask, (height, width) float32 in [0, 1], or None where none is known."""
        values = self.folder.mask(frame)
        return None if values is None else torch.from_numpy(values)


class Groups:
    """Groups of one stage, numbered per side of the gate over all folders.

    Attributes:
        counts: how many there are on either side.
        remarks: sentences for the person who started the run: which caches are read, which are stale, what captions
            lack.
    """

    def __init__(
        self,
        sides: list[list[Dataset]],
        validation: list[Dataset],
        caches: dict[Path, dict[str, CacheReader]],
        remarks: list[str],
    ) -> None:
        self._sides, self._validation, self._caches, self.remarks = sides, validation, caches, remarks
        self._starts = [np.cumsum([0, *map(len, side)]) for side in sides]
        self.counts = (int(self._starts[0][-1]), int(self._starts[1][-1]))

    @classmethod
    def open(cls, config: TrainConfig, frozen: Frozen, quality: str, split: str = "train") -> Groups:
        """The groups of the config's folders, of one split; `quality` is a stage's.

        A cache that was made with other encoders or sizes is not read, and a remark says so.

        Raises:
            FlexIPError: a folder is no data folder.
        """
        qualities = None if quality == "any" else (quality,)
        sides = [[Dataset.open(folder, split, kinds, qualities) for folder in config.data] for kinds in KINDS_BY_SIDE]
        validation = [Dataset.open(folder, split) for split in ("val", "train") for folder in config.data]
        remarks: list[str] = []
        caches = {dataset.folder: _caches(dataset, config, frozen, remarks) for dataset in sides[0]}
        return cls(sides, validation, caches, remarks)

    def get(self, side: int, number: int) -> Subject:
        """A group by its number on one side of the gate."""
        starts = self._starts[side]
        folder = int(np.searchsorted(starts, number, "right")) - 1
        dataset = self._sides[side][folder]
        return Subject(dataset.group(number - int(starts[folder])), dataset, self._caches[dataset.folder])

    def target_sizes(self, side: int) -> NDArray[np.int64]:
        """(groups, 2): width and height of each group's first frame that may be a target, in pixels; 1 and 1 where
        there is none."""
        found = [np.zeros((0, 2), np.int64)]
        for dataset in self._sides[side]:
            for batch in dataset.batches():
                frames = batch.column("frames")
                flat, groups = frames.flatten(), pc.list_parent_indices(frames).to_numpy()
                usable = pc.is_in(pc.struct_field(flat, "role"), value_set=pa.array(TARGET)).to_numpy(False)
                places, first = np.unique(groups[usable], return_index=True)
                sizes = np.ones((len(batch), 2), np.int64)
                for axis, name in enumerate(("width", "height")):
                    values = pc.struct_field(flat, name).to_numpy(False)
                    sizes[places, axis] = values[usable][first]
                found.append(sizes)
        return np.concatenate(found)

    def captions(self, side: int) -> CaptionCount:
        """What the captions on one side of the gate are like."""
        found = CaptionCount()
        for dataset in self._sides[side]:
            found = found.plus(count_captions(dataset.batches()))
        return found

    def validation(self) -> Iterator[Subject]:
        """Groups to show, the same at every call: of the split `val`, then of `train`; variants first, because their
        reference is another picture."""
        for dataset in self._validation:
            kinds = dataset.column("kind").to_numpy(zero_copy_only=False)
            for place in np.argsort(kinds == "image", kind="stable"):
                yield Subject(dataset.group(int(place)), dataset, {})

    def identity(self) -> dict[str, Any]:
        """The content of the groups, which must stay as it is while a run goes on them; as `identity` says."""
        return identity(self._sides)

    def describe(self) -> list[dict[str, Any]]:
        """Per data set: name, license, train groups and kinds; for the model card."""
        columns = ("dataset", "license", "kind")
        datasets = [d for side in self._sides for d in side]
        whole = pa.concat_tables([pa.table({c: d.column(c) for c in columns}) for d in datasets])
        rows: dict[tuple[str, str], dict[str, int]] = {}
        for row in whole.group_by(columns).aggregate([([], "count_all")]).to_pylist():
            rows.setdefault((row["dataset"], row["license"]), {})[row["kind"]] = row["count_all"]
        return [
            {"name": name, "license": text, "groups": sum(kinds.values()), "kinds": ", ".join(sorted(kinds))}
            for (name, text), kinds in sorted(rows.items())
        ]


def _caches(dataset: Dataset, config: TrainConfig, frozen: Frozen, remarks: list[str]) -> dict[str, CacheReader]:
    if not config.use_cache:
        return {}
    crop, flips = config.references.crop, config.references.flip_image + config.references.flip_variant > 0
    wanted = {
        "latents": frozen.latents_manifest,
        "clip": clip_manifest(frozen.clip, crop, flips),
        "dino": dino_manifest(frozen.dino, crop, flips),
    }
    if config.latents == "sample":  # a cache has the mean alone
        del wanted["latents"]
    folder, remote = dataset.folder, dataset.remote
    there = {manifest.kind for manifest in list_caches(folder).values()}
    readers = {}
    for kind, manifest in wanted.items():
        if kind in there:
            try:
                readers[kind] = CacheReader(folder, check_cache(folder, manifest), remote)
            except FlexIPError as error:
                remarks.append(str(error))
    remarks.append(f"{folder if remote is None else remote.uri}: cached {', '.join(readers) or 'nothing'}")
    return readers
