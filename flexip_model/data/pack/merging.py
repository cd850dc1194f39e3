"""`data merge`: what several processes packed, each its share of a source, becomes one dataset."""

from __future__ import annotations

from pathlib import Path

from ...common.errors import FlexIPError
from ..format.shared_dataset import SharedDataset
from .heldout import keep_apart
from .report import Tally, log_report


def merge(folder: Path, name: str) -> Tally:
    """Make the index of a dataset whose shares were packed by several processes.

    Raises:
        FlexIPError: shares or shards are missing, or shares are of different sources or options.
    """
    written = SharedDataset(folder, name)
    first = written.records[0]
    for rank, record in enumerate(written.records):
        # Machines may have the source and the excluded pictures in different places.
        for option in first["options"].keys() - {"source", "exclude"}:
            if record["options"].get(option) != first["options"][option]:
                raise FlexIPError(
                    f"the shares 0 and {rank} of {name!r} were packed with another {option}; pack one again"
                )
        if record["source"] != first["source"]:
            raise FlexIPError(
                f"the shares 0 and {rank} of {name!r} were packed from sources that differ; pack one again"
            )
    tally = Tally()
    for record in written.records:
        tally.join(Tally(**record["tally"]))
    if not written.groups:
        raise FlexIPError(f"none of the {tally.items:,} items of {name!r} gave a group; there is nothing to merge")
    own, others = keep_apart(written, first["options"]["near"])
    log_report(tally, written, own, others)
    return tally
