"""`python -m flexip_model benchmark`: every part, or those named; prints a Markdown table."""

from __future__ import annotations

import argparse
import os
import platform
from typing import Any

PARTS = ("diffusers", "files", "comfyui")


def add_commands(commands: Any) -> None:
    """Add `benchmark` to an argparse sub-parser collection."""
    parser = commands.add_parser("benchmark", help="time what the pack costs, as ratios from one run")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side, a multiple of 64 (default 512)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (default 5)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the parts and print machine, versions and table.

    Raises:
        FlexIPError: an unknown part, a size or number of rounds out of range, or no ComfyUI for `comfyui`.
    """
    import torch

    from ..errors import FlexIPError
    from .files import adapter_load
    from .in_comfyui import comfyui
    from .in_diffusers import steps
    from .measure import table

    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        raise FlexIPError(f"there is no benchmark {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if options.size < 64 or options.size % 64 or options.rounds < 1:
        raise FlexIPError("--size takes a multiple of 64 and --rounds at least 1")
    parts = options.parts or PARTS
    rows = []
    if "diffusers" in parts:
        rows += steps(options.size, options.rounds)
    if "files" in parts:
        rows += adapter_load(options.rounds)
    if "comfyui" in parts:
        rows += comfyui(options.size, options.rounds)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"torch {torch.__version__} on the CPU in fp32, {options.rounds} rounds\n")
    print(table(rows))
