"""The options of `evaluate generate`; those that say what draws, and how, are the figures' too."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import FlexIPError
from ...common.processes import run_shares
from ...images.preprocess import AS_TRAINED

if TYPE_CHECKING:
    from .drawer import Files, Sampling


def add_options(parser: argparse.ArgumentParser) -> None:
    """All but the benchmark."""
    add_files(parser, base_required=True)
    add_sampling(parser)
    parser.add_argument(
        "--seeds", type=int, default=10, help="pictures per prompt, seeds from 0 (default 10, the paper's)"
    )
    parser.add_argument("--gammas", default="0.6", help="γ, or IP-Adapter's scale: numbers with commas (default 0.6)")
    parser.add_argument("--strengths", default="1", help="numbers with commas (default 1)")
    parser.add_argument("--batch", type=int, default=4, help="pictures at once (default 4)")
    parser.add_argument("--processes", type=int, default=1, help="on this machine; or start it by accelerate launch")
    parser.add_argument("--out", type=Path, required=True, help="the pictures' folder; the same one goes on with it")
    parser.set_defaults(run=_generate)


def add_files(parser: argparse._ActionsContainer, base_required: bool = False) -> None:
    """What draws, see `Files`."""
    parser.add_argument(
        "--base", type=Path, required=base_required, help="SD1.5: a diffusers folder or a .safetensors checkpoint"
    )
    parser.add_argument("--base-configs", type=Path, metavar="FOLDER", help="for a checkpoint: diffusers' configs")
    parser.add_argument("--adapter", type=Path, help="FlexIP's or IP-Adapter(-Plus)'s file, drawn by this pack")
    parser.add_argument("--clip", type=Path, help="the adapter's CLIP encoder, a .safetensors file")
    parser.add_argument("--dino", type=Path, help="the adapter's DINO encoder, a .safetensors file")
    parser.add_argument("--ip-adapter", type=Path, help="an IP-Adapter(-Plus) file, drawn by diffusers' own code")
    parser.add_argument("--image-encoder", type=Path, metavar="FOLDER", help="its encoder, in transformers' layout")


def add_sampling(parser: argparse._ActionsContainer, guidance: float | None = 7.5) -> None:
    """How it draws, see `Sampling`."""
    parser.add_argument("--steps", type=int, default=50, help="of DDIM (default 50, the paper's)")
    parser.add_argument("--guidance", type=float, default=guidance, help="default 7.5, the paper's")
    parser.add_argument("--size", type=int, help="pixels of a side (default: the base's)")
    parser.add_argument(
        "--crop",
        choices=(AS_TRAINED, "center", "pad"),
        default=AS_TRAINED,
        help="of the reference (default: what the adapter's file records, center where it does not)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def read_files(options: argparse.Namespace) -> Files:
    """What `add_files` asked for."""
    from .drawer import Files

    if options.image_encoder is not None and options.ip_adapter is None:
        raise FlexIPError("--image-encoder belongs to --ip-adapter; an --adapter reads --clip")
    return Files(
        options.base,
        options.base_configs,
        options.adapter,
        options.clip,
        options.dino,
        options.ip_adapter,
        options.image_encoder,
    )


def read_sampling(options: argparse.Namespace) -> Sampling:
    """What `add_sampling` asked for.

    Raises:
        FlexIPError: no steps.
    """
    from .drawer import Sampling

    if options.steps < 1:
        raise FlexIPError(f"--steps is {options.steps}; expected at least 1")
    return Sampling(options.steps, options.guidance, options.size, options.crop)


def _generate(options: argparse.Namespace) -> None:
    from .draw import Settings, generate

    if min(options.seeds, options.batch, options.processes) < 1:
        raise FlexIPError("--seeds, --batch and --processes are at least 1")
    settings = Settings(
        benchmark=options.benchmark,
        form=options.form,
        files=read_files(options),
        sampling=read_sampling(options),
        seeds=tuple(range(options.seeds)),
        values=_numbers("--gammas", options.gammas, 1),
        strengths=_numbers("--strengths", options.strengths, 10),
        batch=options.batch,
        device=options.device,
        out=options.out,
    )
    run_shares(generate, settings, options.processes)
    print(f"drawn: {options.out}")


def _numbers(flag: str, text: str, highest: float) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise FlexIPError(f"{flag} {text}: expected numbers with commas between") from error
    if len(set(values)) < len(values) or not all(0 <= value <= highest for value in values):
        raise FlexIPError(f"{flag} {text}: expected different numbers from 0 to {highest:g}")
    return values
