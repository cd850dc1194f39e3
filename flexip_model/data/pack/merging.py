"""`data merge`: what several processes packed, each its share of a source, becomes one dataset."""

from __future__ import annotations

from pathlib import Path

from ...common.errors import FlexIPError
from ..format.shared_dataset import SharedDataset
from .heldout import keep_apart
from .report import Tally, check_broken, log_report


def merge(folder: Path, name: str) -> Tally:
    """Make the index of a dataset whose shares were packed by several processes.

    Raises:
        FlexIPError: shares or shards are missing or damaged, shares are of different sources or options, or too much of
            all of them is unreadable.
    """
    written = SharedDataset(folder, name)
    try:
        return _merge(written)
    except BaseException:
        written.abandon()
        raise


def _merge(written: SharedDataset) -> Tally:
    _check_alike(written)
    tally = Tally()
    for record in written.records:
        tally.join(Tally(**record["tally"]))
    anew = f"delete {written.place} to begin anew"
    if not written.groups:
        raise FlexIPError(
            f"none of the {tally.items:,} items of {written.dataset!r} gave a group, there is nothing to merge; {anew}"
        )
    allowed = max(record["broken"] for record in written.records)
    check_broken(tally, allowed, f"mend or remove them, or allow more, and {anew}")
    log_report(tally, written, *keep_apart(written, written.records[0]["options"]["near"]))
    return tally


def _check_alike(written: SharedDataset) -> None:
    first = written.records[0]
    for rank, record in enumerate(written.records):
        names = sorted(first["options"].keys() - {"source"})
        differing = [f"with another {name}" for name in names if record["options"].get(name) != first["options"][name]]
        if record["source"] != first["source"]:
            differing.append("from sources that differ")
        if differing:
            raise FlexIPError(
                f"the shares 0 and {rank} of {written.dataset!r} were packed {differing[0]}; delete the folder of the "
                f"wrong one in {written.place} and pack it again"
            )
