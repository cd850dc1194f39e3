"""`evaluate …`: put any method's pictures through the paper's evaluation (section 4)."""

from __future__ import annotations

import argparse
from pathlib import Path

from .benchmarks.benchmark import write_plain
from .benchmarks.opening import FORMS, open_benchmark


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate` with its own commands."""
    evaluate = commands.add_parser("evaluate", help="put any method's pictures through the paper's evaluation")
    own = evaluate.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_benchmark(own)


def add_benchmark_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--benchmark", default="small", help="its folder, or `small` (default): a dozen that ship")
    parser.add_argument("--form", default="auto", choices=("auto", *FORMS), help="of the folder (default: told by it)")


def _add_benchmark(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("benchmark", help="read a benchmark, say what is in it and what is wrong with it")
    add_benchmark_choice(parser)
    parser.add_argument("--out", type=Path, help="write it in the plain form into this folder")
    parser.set_defaults(run=_benchmark)


def _benchmark(options: argparse.Namespace) -> None:
    benchmark = open_benchmark(options.benchmark, options.form)
    categories = sorted({subject.category for subject in benchmark} - {""})
    print(f"{benchmark.name}: {benchmark.source}")
    print(f"{len(benchmark)} subjects" + (f" ({', '.join(categories)})" if categories else ""))
    print(f"{sum(len(subject.prompts) for subject in benchmark)} prompts")
    print(f"{sum(bool(subject.others) for subject in benchmark)} subjects have more than one true picture")
    for problem in benchmark.problems:
        print(f"problem: {problem}")
    if options.out is not None:
        write_plain(benchmark, options.out)
        print(f"written in the plain form: {options.out}")
