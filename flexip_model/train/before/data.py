"""Whether a run's data folders hold what its stages train on."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from ...common.errors import FlexIPError
from ...data.format import Dataset, shard_path
from ..configs.options import TrainConfig
from ..samples.groups import KINDS_BY_SIDE
from ..samples.sampler import SIDES


def missing_groups(config: TrainConfig, stage: int) -> list[str]:
    """A sentence for each side of the gate that a stage needs groups of and has none: what there is instead, and what
    to do.

    Args:
        stage: its number, from 0.

    Raises:
        FlexIPError: a folder is no data folder.
    """
    quality = config.stages[stage].quality
    images = round(config.batch * config.image_share)
    sentences = []
    for side, wanted in enumerate((images, config.batch - images)):
        found: Counter[tuple[str, str]] = Counter()
        for folder in config.data:
            dataset = Dataset.open(folder, None, KINDS_BY_SIDE[side])
            rows = pa.table({name: dataset.column(name) for name in ("split", "quality")})
            for row in rows.group_by(["split", "quality"]).aggregate([([], "count_all")]).to_pylist():
                found[row["split"], row["quality"]] += row["count_all"]
        train = {held: count for (split, held), count in found.items() if split == "train"}
        if not wanted or (train if quality == "any" else quality in train):
            continue
        name, other = SIDES[side], SIDES[1 - side]
        lacks = f"stage {stage + 1} has no {name} groups in {', '.join(config.data)}"
        if train:
            sentences.append(
                f"{lacks} of the quality {quality}: all {sum(train.values())} there were packed as "
                f"{' or '.join(sorted(train))}; pack some with `--quality {quality}`, give the stage `quality: any`, "
                "or leave it out"
            )
        elif found:
            splits = " and ".join(sorted({split for split, _ in found}))
            sentences.append(
                f"{lacks} to train on: all {found.total()} lie in the split {splits}; pack more, or pack them with "
                "`--val 0`"
            )
        else:
            sentences.append(
                f"{lacks}; pack some, or set image_share: {side} to train on {other} groups alone (the gate then "
                "learns one side only)"
            )
    return sentences


def check_folder(folder: str, bad_share: float) -> None:
    """Look whether the shards are there that the index of a data folder names; not into object storage.

    Args:
        bad_share: share of pictures that may be missing.

    Raises:
        FlexIPError: no data folder, or too much is missing.
    """
    dataset = Dataset.open(folder)
    if dataset.remote is not None:
        return
    missing, lost, frames = set(), 0, 0
    for table in dataset.tables.values():
        for chunk in table.column("frames").chunks:
            shards: pa.Array = pc.struct_field(chunk.flatten(), "shard")
            frames += len(shards)
            for entry in pc.value_counts(shards).to_pylist():
                if not shard_path(dataset.folder, entry["values"]).is_file():
                    missing.add(entry["values"])
                    lost += entry["counts"]
    if lost > bad_share * frames:
        raise FlexIPError(
            f"{folder} lacks {len(missing)} of the shards that its index names, with {lost} of {frames} pictures, more "
            f"than bad_share ({bad_share:.1%}), the first is shards/{min(missing)}; put them back, or pack the data "
            "set again"
        )
