"""Trackers by the names that accelerate gives them (wandb, mlflow, comet_ml …), beside the run's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import FlexIPError, Mistakes

PROJECT = "flexip"


def check_trackers(names: Sequence[str]) -> None:
    """Look whether trackers are known and installed.

    Raises:
        FlexIPError: one is not; all of them at once.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known, installed = set(map(str, LOGGER_TYPE_TO_CLASS)), set(map(str, get_available_trackers()))
    mistakes = Mistakes()
    for name in names:
        if name not in known:
            mistakes.add(f"there is no tracker {name!r}; accelerate knows {', '.join(sorted(known))}")
        elif name not in installed:
            mistakes.add(
                f"the package of the tracker {name} is not installed; install it, or take {name} out of trackers"
            )
    mistakes.tell("{count} trackers cannot be had:")


def open_trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Any]:
    """Start trackers; each gets the run's config.

    Args:
        names: as accelerate has them.
        folder: for those that write files.
        config: of the run; sections become dotted names.

    Raises:
        FlexIPError: one that cannot start: no network, no account …
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    trackers = []
    for name in names:
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        try:
            tracker = kind(PROJECT, str(folder)) if kind.requires_logging_directory else kind(PROJECT)
            if hasattr(tracker, "start"):  # accelerate before 1.8 starts them when they are made
                tracker.start()
            tracker.store_init_configuration(_flat(config))
        except Exception as error:  # of whatever kind the tracker's package raises
            raise FlexIPError(
                f"the tracker {name} cannot start ({' '.join(str(error).split()) or type(error).__name__}); set it up "
                "as its own pages say, or take it out of trackers"
            ) from error
        trackers.append(tracker)
    return trackers


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and text by dotted name: what every tracker takes."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
