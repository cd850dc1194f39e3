"""The command line, `python -m flexip_model`: adapter files, data, training, measuring, and the model that ships."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .common.console import run_command
from .common.errors import FlexIPError
from .files.describe import describe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, as `run_command`."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: options.run(options))


def _parser() -> argparse.ArgumentParser:
    from .data.cli import add_commands as add_data
    from .demo.cli import add_commands as add_demo
    from .evaluation.cli import add_commands as add_evaluate
    from .evaluation.figures.cli import add_commands as add_figures
    from .tools.benchmark.cli import add_commands as add_benchmark
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

    add_figures(commands)
    add_benchmark(commands)
    add_data(commands)
    add_demo(commands)
    add_evaluate(commands)
    add_train(commands)
    return parser


def _convert(options: argparse.Namespace) -> None:
    from .files.ip_adapter import convert_file

    if options.out.exists():
        raise FlexIPError(f"{options.out} exists already; name another file or move that one away")
    if not options.out.absolute().parent.is_dir():
        raise FlexIPError(f"there is no folder {options.out.absolute().parent}; make it first")
    convert_file(options.file, options.out)
    print(describe(options.out))


if __name__ == "__main__":
    sys.exit(main())
