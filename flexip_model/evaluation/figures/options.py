"""Options of the figures' commands: what draws, by default the model that ships, and where the picture goes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import FlexIPError
from ..generate.cli import add_files, add_sampling, read_sampling

if TYPE_CHECKING:
    from ..generate.drawer import Files
    from .drawing import Drawing

SHIPPED = Path(__file__).resolve().parents[3] / "models" / "demo"
"""The model that ships with the pack."""
SHIPPED_GUIDANCE = 3.0
FLEXIP, IP_ADAPTER = "FlexIP", "IP-Adapter"
"""Methods' names on figures; an IP-Adapter's begins so."""
SMALL = (
    "Drawn with the small model that ships (128 px, drawn subjects): it shows how the method works, not what it can do "
    "at SD1.5's size."
)


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """What draws, how, and where to."""
    add_files(parser.add_argument_group("files (default: the model that ships)"))
    sampling = parser.add_argument_group("the pictures")
    add_sampling(sampling, guidance=None)
    sampling.add_argument("--batch", type=int, default=4, help="pictures at once (default 4)")


def check_out(out: Path) -> None:
    """Whether the picture can be written there.

    Raises:
        FlexIPError: another suffix than .png, or no such folder.
    """
    if out.suffix.lower() != ".png" or not out.absolute().parent.is_dir():
        raise FlexIPError(f"the picture is to be {out}; expected a name that ends in .png, in a folder there is")


def read_drawing(options: argparse.Namespace, small: str = SMALL) -> tuple[list[tuple[str, Files]], Drawing]:
    """The methods by name, FlexIP (or whatever `--adapter` is) first, then the IP-Adapter; and how they draw.

    Args:
        small: what is said below a figure of the model that ships.

    Raises:
        FlexIPError: options that do not go together.
    """
    from ...common.device import pick_device
    from ..generate.drawer import Files
    from .drawing import Drawing

    check_out(options.out)
    if options.batch < 1:
        raise FlexIPError(f"--batch is {options.batch}; expected at least 1")
    given = (options.base, options.adapter, options.clip, options.dino, options.ip_adapter, options.image_encoder)
    shipped = not any(given)
    notes: tuple[str, ...] = ()
    if shipped:
        encoders = SHIPPED / "encoders"
        own = (encoders / "clip_vision.safetensors", encoders / "dinov2.safetensors")
        found, notes = [(FLEXIP, Files(SHIPPED, None, SHIPPED / "flexip_demo.safetensors", *own))], (small,)
    elif options.base is None or (options.adapter is None and options.ip_adapter is None):
        raise FlexIPError("--base and --adapter or --ip-adapter go together; or none of them, for the model that ships")
    else:
        found, notes = _methods(options)
    guidance = options.guidance if options.guidance is not None else SHIPPED_GUIDANCE if shipped else 7.5
    sampling = replace(read_sampling(options), guidance=guidance)
    return found, Drawing(sampling, pick_device(options.device), options.batch, notes)


def _methods(options: argparse.Namespace) -> tuple[list[tuple[str, Files]], tuple[str, ...]]:
    """What is named, and a sentence on how the IP-Adapter is drawn: with an image encoder diffusers draws it, without
    one it is imported."""
    from ...files.safefile import read_header
    from ..generate.drawer import Files
    from ..generate.own_ip_adapter import check_folder

    base, found = Files(options.base, options.base_configs), []
    if options.adapter is not None:
        files = replace(base, adapter=options.adapter, clip=options.clip, dino=options.dino)
        found.append((FLEXIP if _is_flexip(options.adapter) else IP_ADAPTER, files))
    if options.image_encoder is not None and options.ip_adapter is None:
        raise FlexIPError("--image-encoder belongs to --ip-adapter; an --adapter reads --clip")
    if options.ip_adapter is None:
        return found, ()
    read_header(options.ip_adapter)  # before the first method draws for long
    name = IP_ADAPTER if IP_ADAPTER not in dict(found) else f"{IP_ADAPTER} 2"
    if options.image_encoder is not None:
        check_folder(options.image_encoder)
        files = replace(base, ip_adapter=options.ip_adapter, image_encoder=options.image_encoder)
        return [*found, (name, files)], (f"{name} is drawn by diffusers' own code.",)
    files = replace(base, adapter=options.ip_adapter, clip=options.clip)
    return [*found, (name, files)], (f"{name} is imported and drawn by this pack.",)


def _is_flexip(path: Path) -> bool:
    """Whether a file is an adapter with both branches, and no IP-Adapter, as published or converted."""
    from ...files.adapter_file import load_adapter_file
    from ...files.safefile import read_header
    from ...method.adapters import FlexIPAdapter

    of_the_pack = "flexip.format_version" in read_header(path).metadata
    return of_the_pack and load_adapter_file(path)[0].config.kind == FlexIPAdapter.kind
