"""Packages beyond requirements.txt, which only some commands need."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from .errors import FlexIPError


def need(what: str, packages: Mapping[str, str], extra: str = "train") -> None:
    """Check that packages are installed, without importing them.

    Args:
        what: what needs them, as a sentence begins.
        packages: the package that has each module.
        extra: the extra of `pyproject.toml` that has them all.

    Raises:
        FlexIPError: one is not; it says how to install the extra.
    """
    for module, package in packages.items():
        if importlib.util.find_spec(module) is None:
            raise FlexIPError(f"{what} needs {package}: run `pip install -e '.[{extra}]'` in the pack's folder")
