"""What is looked at before a stage's first step: are there groups, and do they have captions?"""

from __future__ import annotations

import math
from pathlib import Path

from ...common.errors import FlexIPError
from ..configs.options import TrainConfig
from .groups import Groups
from .sampler import SIDES


def check_groups(groups: Groups, config: TrainConfig, stage: int, wanted: tuple[int, int]) -> None:
    """Check that every side that a batch takes samples of has groups, and that their captions are there.

    Args:
        groups: of the stage; it gets remarks on their captions.
        stage: from 0.
        wanted: samples of a batch on either side of the gate.

    Raises:
        FlexIPError: a side has no groups, or more than `config.uncaptioned` of its target frames have no caption.
    """
    for side, samples in enumerate(wanted):
        if samples and not groups.counts[side]:
            raise FlexIPError(
                f"stage {stage + 1} has no {SIDES[side]} groups in {', '.join(map(str, map(Path, config.data)))}; pack "
                f"some, or set image_share: {side} to train on {SIDES[1 - side]} groups alone (the gate then "
                "learns one side only)"
            )
    for side, samples in enumerate(wanted):
        if not samples:
            continue
        found = groups.captions(side)
        share = found.without / max(found.frames, 1)
        if share > config.uncaptioned:
            raise FlexIPError(
                f"{found.without:,} of the {found.frames:,} target frames of {SIDES[side]} groups have no caption "
                f"({share:.1%}), more than uncaptioned, {config.uncaptioned:.1%}: write them with `python -m "
                f"flexip_model data caption {config.data[0]} --model FOLDER`, or as NAME.txt beside the files before "
                f"they are packed; or set uncaptioned: {math.ceil(share * 100) / 100} to train so"
            )
        groups.remarks += [f"{SIDES[side]} groups: {sentence}" for sentence in found.sentences()]
