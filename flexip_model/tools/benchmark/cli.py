"""`python -m flexip_model benchmark`: the parts that are named; prints Markdown tables."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

COMPARISONS = ("diffusers", "files", "comfyui")
PARTS = (*COMPARISONS, "training", "scale", "card")

ABOUT = (
    "Parts: diffusers, a step with the adapter against one without; files, loading an adapter; comfyui, a run in "
    "ComfyUI against an unpatched one; training, the trainer against a plain loop; scale, what long runs take, "
    "computed."
)


def add_commands(commands: Any) -> None:
    """Add `benchmark` to an argparse sub-parser collection."""
    parser = commands.add_parser("benchmark", help="time what the pack costs, as ratios from one run", epilog=ABOUT)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"some of: {', '.join(PARTS)} (default: {', '.join(COMPARISONS)})"
    )
    parser.add_argument("--size", type=int, help="pixels of a side, a multiple of 64 (512; 128 for the demo model)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (5)")
    training = parser.add_argument_group("training: the trainer against a plain loop")
    training.add_argument(
        "--model",
        choices=("demo", "sd15"),
        help="the model that ships, or SD1.5's sizes on random weights (sd15 on a GPU, else demo)",
    )
    training.add_argument("--steps", type=int, help="timed of each run, a multiple of 5 (100 on a GPU, else 20)")
    training.add_argument("--batch", type=int, help="samples per step (8; 16 for the demo model)")
    training.add_argument(
        "--switches",
        action="store_true",
        help="compile and gradient_checkpointing, each alone and both, against neither, in place of the plain loop",
    )
    training.add_argument("--workers", type=int, help="loading processes of the trainer (4; 0 for the demo model)")
    training.add_argument("--base", help="SD1.5 in diffusers' layout, in place of random weights")
    training.add_argument("--clip", help="its OpenCLIP ViT-H/14 file")
    training.add_argument("--dino", help="its DINOv2-L/14 file")
    training.add_argument("--data", type=Path, help="a packed and cached data folder (default: made anew)")
    scale = parser.add_argument_group("scale: time, memory, storage and cost of long runs, computed")
    scale.add_argument(
        "--add", action="append", default=[], metavar="CARD=GB", help="another card, with --peak and --price of it"
    )
    for name, what in (
        ("peak", "TFLOP/s of a card, dense bf16"),
        ("utilization", "share of the peak that is reached"),
        ("speed", "measured samples/s of a card, in place of both"),
        ("price", "USD per card and hour"),
    ):
        names = ("--utilization", "--utilisation") if name == "utilization" else (f"--{name}",)
        scale.add_argument(*names, action="append", default=[], metavar="CARD=NUMBER", help=what)
    check = parser.add_argument_group("card: what only a GPU can say, within five minutes and without network")
    check.add_argument("--out", type=Path, help="the folder for card.json, card.md and card.log")
    check.add_argument("--only", metavar="NAME,…", help="some of its parts (default: all)")
    check.add_argument("--limit", type=float, metavar="SECONDS", help="of all its parts together (300)")
    check.add_argument("--tiny", action="store_true", help="a rehearsal at small sizes, on any machine")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the parts and print machine, versions and tables.

    Raises:
        FlexIPError: an unknown part, a number out of its range, no ComfyUI for `comfyui`, a package that is missing.
    """
    from ...common.errors import FlexIPError
    from ...common.extras import need

    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        raise FlexIPError(f"there is no benchmark {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if (options.size is not None and (options.size < 64 or options.size % 64)) or options.rounds < 1:
        raise FlexIPError("--size takes a multiple of 64 and --rounds at least 1")
    parts = options.parts or COMPARISONS
    if set(parts) & set(COMPARISONS):
        _comparisons(options, parts)
    if {"training", "scale", "card"} & set(parts):
        need(
            "this benchmark",
            {"accelerate": "accelerate", "pyarrow": "pyarrow", "tensorboard": "tensorboard", "yaml": "pyyaml"},
        )
    if "training" in parts:
        _training(options)
    if "scale" in parts:
        from .scale import print_scale

        print(f"{machine()}\n")
        print_scale(options)
    if "card" in parts:
        from .card.run import card

        card(options)


def _comparisons(options: argparse.Namespace, parts: Any) -> None:
    from .files import adapter_load
    from .in_diffusers import steps
    from .in_process import comfyui
    from .timing import table

    size = options.size or 512
    rows = []
    if "diffusers" in parts:
        rows += steps(size, options.rounds)
    if "files" in parts:
        rows += adapter_load(options.rounds)
    if "comfyui" in parts:
        rows += comfyui(size, options.rounds)
    print(f"{machine()} on the CPU in fp32, {options.rounds} rounds\n")
    print(table(rows))


def _training(options: argparse.Namespace) -> None:
    import torch

    from ...common.errors import FlexIPError
    from .timing import table
    from .training import WARMUP, model_name, prepare_training, switches, training

    cuda = torch.cuda.is_available()
    steps = options.steps if options.steps is not None else (100 if cuda else 20)
    if steps < WARMUP or steps % WARMUP:
        raise FlexIPError(f"--steps is {steps}; expected a multiple of {WARMUP}")
    with tempfile.TemporaryDirectory(prefix="flexip-training-") as folder:
        config = prepare_training(Path(folder), options)
        rows = (switches if options.switches else training)(config, steps, options.rounds)
        device = f"{torch.cuda.get_device_name()}" if cuda else "the CPU"
        print(
            f"{machine()} on {device} in {config.precision}, {model_name(config)}, {options.rounds} rounds of "
            f"{steps} steps, {config.workers} loading processes\n"
        )
        print(table(rows))


def machine() -> str:
    """System and versions, for a table's heading."""
    import torch

    return (
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
