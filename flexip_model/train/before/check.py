"""Everything that a run will need, looked at before its first step and told at once: files, all data, room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from ...common.errors import FlexIPError, Mistakes
from ...common.processes import given_share
from ...method.adapters import FlexIPAdapter
from ..configs.options import TrainConfig
from ..configs.parts import part_of
from ..frozen import Frozen, load_frozen
from ..preview import GAMMAS, SUBJECTS
from ..samples.sample_set import open_samples
from ..shared.optimizers import CHECKPOINT_BYTES, check_optimizer
from ..shared.state import list_steps
from ..shared.trackers import check_trackers
from ..start import begin, read_start
from .data import check_folder, missing_groups


def load_checked(config: TrainConfig) -> tuple[Frozen, FlexIPAdapter]:
    """Load the networks that a run trains beside and the adapter that it begins with, and look at all else that it will
    need: the data of every stage that is still to come, the output folder, room on its disk.

    The first process alone looks at data and output: the others share them, or have none.

    Raises:
        FlexIPError: what is missing or wrong, all of it at once.
    """
    mistakes = Mistakes()
    first = given_share().rank == 0
    whole: list[int] = []
    if first:
        with mistakes.gathered():
            check_output(Path(config.output))
        with mistakes.gathered():
            check_trackers(config.trackers)
        with mistakes.gathered():
            check_optimizer(config.optimizer)
        whole = _check_data(config, mistakes)
    frozen = adapter = None
    with mistakes.gathered():
        frozen = load_frozen(config)
    with mistakes.gathered():
        if frozen is None:
            read_start(config)
        else:
            adapter = begin(config, frozen)
            with mistakes.gathered():
                check_parts(config, adapter)
            for stage in whole:
                with mistakes.gathered():
                    open_samples(config, frozen, stage, 1)
    if adapter is not None and first and Path(config.output).is_dir():
        with mistakes.gathered():
            check_room(config, sum(parameter.numel() for parameter in adapter.parameters()))
    mistakes.tell("{count} things would stop this run:")
    assert frozen is not None
    assert adapter is not None
    return frozen, adapter


def check_parts(config: TrainConfig, adapter: FlexIPAdapter) -> None:
    """Look whether the adapter has what each stage is to train.

    Raises:
        FlexIPError: a stage names a part that has no weights.
    """
    there = {part_of(name) for name, _ in adapter.named_parameters()}
    for number, stage in enumerate(config.stages):
        for part in stage.parts:
            if part not in there:
                how = "; set adapter: {learnable_gate: true}, or leave it out" if part == "gate" else "; leave it out"
                raise FlexIPError(
                    f"stage {number + 1} trains the part {part}, which has no weights in this adapter{how}"
                )


def check_output(folder: Path) -> None:
    """Make a run's output folder, and write into it.

    Raises:
        FlexIPError: it cannot be made or written.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        raise FlexIPError(
            f"the output folder {folder} cannot be written ({error.strerror or error}); name another one as output, or "
            "let this user write there"
        ) from error


def check_room(config: TrainConfig, weights: int) -> None:
    """Compare the room on the output folder's disk with what the run will write.

    Args:
        weights: of the adapter.

    Raises:
        FlexIPError: it does not suffice.
    """
    folder = Path(config.output)
    there = list_steps(folder / "checkpoints")
    steps = max(0, config.steps - (there[-1] if there else 0))
    # Before an old one goes, the new one is written.
    new = min(config.keep, len(there) + -(-steps // config.save_every)) + 1 - len(there) if steps else 0
    previews = steps // config.preview_every if config.preview_every else 0
    # A PNG is about half of its pixels, and each preview is written twice: as a file and for TensorBoard.
    picture = 3 * config.size**2 * SUBJECTS * (len(GAMMAS) + 1)
    checkpoint = CHECKPOINT_BYTES[config.optimizer] * weights
    needed = max(0, new) * checkpoint + 2 * weights + previews * picture
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FlexIPError(
            f"the disk of {folder} has {free / 1e9:.1f} GB free, and this run will write {needed / 1e9:.1f} GB "
            f"({max(0, new)} checkpoints of {checkpoint / 1e9:.2f} GB, {previews} previews); make "
            "room, set a smaller keep or a larger preview_every, or name another output folder"
        )


def _check_data(config: TrainConfig, mistakes: Mistakes) -> list[int]:
    """Gather what lacks in the data; returns the stages to come that have groups of each kind, from 0."""
    broken = len(mistakes.sentences)
    for folder in config.data:
        with mistakes.gathered():
            check_folder(folder, config.bad_share)
    if len(mistakes.sentences) > broken:
        return []
    there = list_steps(Path(config.output) / "checkpoints")
    ends = np.cumsum([stage.steps for stage in config.stages])
    whole = []
    for number in range(len(config.stages)):
        if there and ends[number] <= there[-1]:
            continue
        sentences = missing_groups(config, number)
        for sentence in sentences:
            mistakes.add(sentence)
        if not sentences:
            whole.append(number)
    return whole
