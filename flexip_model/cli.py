"""The command line: inspect and convert adapter files, benchmark, and make the model that ships."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import FlexIPError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 with one sentence on stderr for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except FlexIPError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    from .benchmark.cli import add_commands as add_benchmark
    from .data.cli import add_commands as add_data
    from .demo.cli import add_commands as add_demo
    from .train.cli import add_commands as add_train

    parser = argparse.ArgumentParser(prog="python -m flexip_model", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    inspect = commands.add_parser("inspect", help="say what an adapter file is, its sizes, and how it was trained")
    inspect.add_argument("file", type=Path)
    inspect.set_defaults(run=lambda options: print(describe(options.file)))

    convert = commands.add_parser("convert", help="turn an IP-Adapter file for SD1.5 into a preservation-only adapter")
    convert.add_argument("file", type=Path, help="ip-adapter_sd15.safetensors or ip-adapter-plus_sd15.safetensors")
    convert.add_argument("out", type=Path, help="the new .safetensors file, for ComfyUI's models/flexip")
    convert.set_defaults(run=_convert)

    add_benchmark(commands)
    add_data(commands)
    add_demo(commands)
    add_train(commands)
    return parser


def _convert(options: argparse.Namespace) -> None:
    from .convert import convert_file

    if options.out.exists():
        raise FlexIPError(f"{options.out} exists already; name another file or move that one away")
    if not options.out.absolute().parent.is_dir():
        raise FlexIPError(f"there is no folder {options.out.absolute().parent}; make it first")
    convert_file(options.file, options.out)
    print(describe(options.out))


def describe(path: Path) -> str:
    """What an adapter file is, in lines for a person.

    Raises:
        FlexIPError: see `checkpoint.read_info`; the sentence names what the file is instead.
    """
    from .checkpoint import expected_shapes, read_info

    info = read_info(path)
    config = info.config
    weights = 0
    for shape in expected_shapes(config).values():
        size = 1
        for side in shape:
            size *= side
        weights += size
    what = {
        "flexip": "FlexIP adapter (preservation and personalization)",
        "ip-adapter": "IP-Adapter, imported: preservation only",
        "ip-adapter-plus": "IP-Adapter-Plus, imported: preservation only",
    }[config.kind]
    lines = [
        f"{path.name}: {what}",
        f"  format version  {info.metadata['flexip.format_version']}",
        f"  weights         {weights:,} in {path.stat().st_size:,} bytes",
        f"  trained         {'yes' if info.trained else 'NO: a bootstrap, its pictures mean nothing'}",
    ]
    lines += [f"    {key:<14}{_plain(value)}" for key, value in sorted(info.training.items()) if key != "trained"]
    lines.append(f"  UNet            SD1.5's structure, channels {config.channels}, context {config.token_width}")
    lines.append(
        f"  resampler       width {config.width}, depth {config.depth}, {config.heads} heads of {config.head_width}, "
        f"{config.queries} {'image tokens' if config.kind == 'ip-adapter' else 'queries'}"
    )
    if config.has_personalization:
        lines.append(f"  gate            α {config.alpha}, β {config.beta}{', learned' * config.learnable_gate}")
    lines.append(f"  dial            {config.dial_in_words}")
    lines.append(f"  features        CLIP [CLS] {config.clip_width}, retrieval {config.retrieval_width}")
    for role, encoder in sorted(info.encoders.items()):
        lines.append(f"    {role:<14}{encoder.get('name', '?')} {encoder.get('hash', '')}".rstrip())
    for key in ("title", "date", "license"):
        if info.metadata.get(f"modelspec.{key}"):
            lines.append(f"  {key:<16}{info.metadata[f'modelspec.{key}']}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """JSON for a person: lists and tables without brackets and quotes."""
    if isinstance(value, list):
        return "; ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(held)}" for key, held in value.items())
    return str(value)
