"""The commands that draw the paper's figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands import add_figure
from .options import SHIPPED, SHIPPED_GUIDANCE, check_out

if TYPE_CHECKING:
    from .attention_maps import Generation


def add_commands(commands: Any) -> None:
    """Add `attention-maps` and `figure` to an argparse sub-parser collection."""
    add_figure(commands)
    parser = commands.add_parser(
        "attention-maps",
        help="see inside (Fig. 7): what the picture's places and the reference's patches are attended by, as a picture",
    )
    parser.add_argument("reference", type=Path, help="a picture of the subject")
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument("out", type=Path, help="the new PNG")
    files = parser.add_argument_group("files (default: the model that ships)")
    files.add_argument("--adapter", type=Path, help="a FlexIP adapter, or an IP-Adapter converted by `convert`")
    files.add_argument("--base", type=Path, help="SD1.5: a diffusers folder or a .safetensors checkpoint")
    files.add_argument("--base-configs", type=Path, metavar="FOLDER", help="for a checkpoint: diffusers' configs")
    files.add_argument("--clip", type=Path, help="the adapter's CLIP image encoder")
    files.add_argument("--dino", type=Path, help="its DINOv2")
    drawing = parser.add_argument_group("the picture")
    drawing.add_argument("--gamma", type=float, default=0.5, help="0 follows the prompt, 1 keeps the subject (0.5)")
    drawing.add_argument("--strength", type=float, default=1.0, help="factor on both branches, above 0 (1)")
    drawing.add_argument("--negative", default="", help="what not to draw")
    drawing.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    drawing.add_argument("--steps", type=int, default=50, help="of DDIM (50)")
    drawing.add_argument("--guidance", type=float, help="of the prompt (7.5; 3 for the model that ships)")
    drawing.add_argument("--size", type=int, help="pixels of a side (the base's own)")
    drawing.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--layers", default="", help="the mean of these: down, mid, up, up_blocks.1 … (all)")
    shown.add_argument("--step-range", default="", metavar="FIRST:LAST", help="the mean of these, from 1 (all)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw, and write the PNG.

    Raises:
        FlexIPError: a file that is missing or of another kind, or a value out of its range.
    """
    from PIL import Image

    from ...common.device import pick_device
    from ...common.errors import FlexIPError
    from ...method.sites import choose_sites
    from .attention_maps import attention_maps, load_models

    given = (options.adapter, options.base, options.clip)
    shipped = not any(given) and options.dino is None
    if not shipped and not all(given):
        raise FlexIPError("--adapter, --base and --clip go together (and --dino for FlexIP); or none, for what ships")
    check_out(options.out)
    generation = _generation(options, shipped)
    sites, (first, last) = choose_sites(options.layers), read_step_range(options.step_range)
    if last > options.steps or first > options.steps:
        raise FlexIPError(f"--step-range is {options.step_range} and there are {options.steps} steps")
    try:
        reference = Image.open(options.reference)
        reference.load()
    except OSError as error:
        raise FlexIPError(f"{options.reference} cannot be read as a picture ({error})") from error
    encoders = SHIPPED / "encoders"
    models = load_models(
        options.adapter or SHIPPED / "flexip_demo.safetensors",
        options.base or SHIPPED,
        options.clip or encoders / "clip_vision.safetensors",
        encoders / "dinov2.safetensors" if shipped else options.dino,
        pick_device(options.device),
        options.base_configs,
    )
    sheet = attention_maps(models, reference, generation, sites=sites, first=first, last=last)
    sheet.save(options.out)
    print(f"{options.out}: {sheet.width} × {sheet.height} pixels")


def _generation(options: argparse.Namespace, shipped: bool) -> Generation:
    from .attention_maps import Generation

    guidance = options.guidance if options.guidance is not None else SHIPPED_GUIDANCE if shipped else 7.5
    return Generation(
        options.prompt,
        options.negative,
        gamma=options.gamma,
        strength=options.strength,
        seed=options.seed,
        steps=options.steps,
        guidance=guidance,
        size=options.size,
    )


def read_step_range(text: str) -> tuple[int, int]:
    """`FIRST:LAST` as numbers of steps from 1, both included; one may be left out. Empty: all, (1, 0).

    Raises:
        FlexIPError: something else.
    """
    from ...common.errors import FlexIPError

    if not text.strip():
        return 1, 0
    first, colon, last = text.strip().partition(":")
    wrong = FlexIPError(f'the step range is "{text}"; expected FIRST:LAST such as 1:10, from 1, both included')
    if not colon or not all(part == "" or part.isdecimal() for part in (first, last)):
        raise wrong
    found = int(first or 1), int(last or 0)
    if found[0] < 1 or (last and found[1] < found[0]):
        raise wrong
    return found
