"""`evaluate …`: put any method's pictures through the paper's evaluation (section 4)."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..common.device import pick_device
from ..common.errors import FlexIPError
from ..common.extras import need
from .benchmarks.benchmark import Benchmark, write_plain
from .benchmarks.opening import FORMS, open_benchmark
from .generate.cli import add_options as add_generate_options
from .metrics.definitions import DEFINITIONS, ROLES
from .metrics.measure import Measure
from .metrics.weights import Weights, tell_lacking
from .pictures.beside import BESIDE, NO_ADAPTER, copies, true_pictures
from .pictures.forms import read_pictures
from .pictures.picture import KNOBS, PictureSet
from .scoring.score import score
from .scoring.store import Run, write_json


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate` with its own commands."""
    evaluate = commands.add_parser("evaluate", help="put any method's pictures through the paper's evaluation")
    own = evaluate.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_benchmark(own)
    _add_generate(own)
    _add_score(own)
    _add_report(own)
    _add_study(own)


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


def _add_score(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("score", help="score methods' pictures by the paper's metrics")
    add_benchmark_choice(parser)
    parser.add_argument(
        "--pictures",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a method and its pictures (plain form or DreamBench++'s folders), once per method; NAME=FOLDER@gamma=0.6 "
        "takes those at one value of a knob",
    )
    parser.add_argument("--no-adapter", type=Path, metavar="FOLDER", help="pictures of the base alone, shown beside")
    parser.add_argument("--config", type=Path, help="YAML with `weights: {ROLE: FOLDER}`")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="ROLE=FOLDER",
        help=f"where weights lie; roles: {', '.join(ROLES)}",
    )
    parser.add_argument("--metrics", help=f"comma-separated (default: all): {', '.join(DEFINITIONS)}")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder; the same one goes on with it")
    parser.add_argument("--batch", type=int, default=8, help="pictures at once (default 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    need("evaluate score", {"yaml": "pyyaml", "torchvision": "torchvision"}, "eval")
    metrics = options.metrics.split(",") if options.metrics else list(DEFINITIONS)
    unknown = [metric for metric in metrics if metric not in DEFINITIONS]
    if unknown or options.batch < 1:
        wrong = f"there is no metric {unknown[0]!r}" if unknown else f"--batch is {options.batch}"
        raise FlexIPError(f"{wrong}; metrics are {', '.join(DEFINITIONS)}, a batch is at least 1")
    benchmark = open_benchmark(options.benchmark, options.form)
    sets = read_sets(benchmark, options.pictures, options.no_adapter)
    measure = Measure(Weights.read(options.config, options.weights), metrics, pick_device(options.device))
    for sentence in tell_lacking(measure.lacking):
        print(sentence)
    score(benchmark, sets, measure, options.out, options.batch)
    print(f"scored: {options.out}")


def read_sets(
    benchmark: Benchmark, named: Sequence[str], no_adapter: Path | None, beside: bool = True
) -> list[PictureSet]:
    """The methods' pictures, and what always stands beside them, or without that."""
    places: dict[str, tuple[Path, tuple[str, float] | None]] = {}
    for entry in named:
        name, equals, place = entry.partition("=")
        if not equals or not name or not place or name in (*places, *BESIDE):
            raise FlexIPError(
                f"--pictures {entry}: expected NAME=FOLDER, each name once and none of {', '.join(BESIDE)}"
            )
        places[name] = _place(place)
    if no_adapter is not None:
        places[NO_ADAPTER] = (no_adapter, None)
    if not places:
        raise FlexIPError("there are no pictures; name them with --pictures NAME=FOLDER")
    sets = [read_pictures(name, place, benchmark, at) for name, (place, at) in places.items()]
    if not beside:
        return sets
    true = true_pictures(benchmark)
    return [*sets, copies(benchmark), *([true] if true else [])]


def _place(text: str) -> tuple[Path, tuple[str, float] | None]:
    """`FOLDER`, or `FOLDER@KNOB=VALUE`."""
    folder, _, setting = text.rpartition("@")
    found = re.fullmatch(rf"({'|'.join(KNOBS)})=([\d.]+)", setting)
    return (Path(folder), (found[1], float(found[2]))) if folder and found else (Path(text), None)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("report", help="a scored run as one page (report.html) and as Markdown (report.md)")
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="what `evaluate score --out` wrote")
    parser.add_argument("--out", type=Path, help="the folder to write into (default: the run's)")
    parser.add_argument("--study", type=Path, metavar="FILE", help="what `evaluate study-result --out` wrote")
    parser.set_defaults(run=_report)
    parser = commands.add_parser("compare", help="two runs: the same methods' figures and paired tests, as Markdown")
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN")
    parser.set_defaults(run=_compare)


PACKAGES = {"pandas": "pandas", "scipy": "scipy", "matplotlib": "matplotlib", "jinja2": "Jinja2"}


def _report(options: argparse.Namespace) -> None:
    need("evaluate report", PACKAGES, "eval")
    from .report.page import write_report

    study = None
    if options.study is not None:
        try:
            study = json.loads(options.study.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FlexIPError(
                f"{options.study} cannot be read ({error}); make it with `evaluate study-result`"
            ) from error
    for path in write_report(Run(options.run_folder), options.out or options.run_folder, study):
        print(path)


def _compare(options: argparse.Namespace) -> None:
    need("evaluate compare", PACKAGES, "eval")
    from .report.compare import compare

    print(compare(*(Run(folder) for folder in options.runs)))


def _add_study(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("study", help="the paper's user study: a page for blind choices between methods")
    add_benchmark_choice(parser)
    parser.add_argument(
        "--pictures", action="append", default=[], metavar="NAME=FOLDER[@gamma=0.6]", help="once per method"
    )
    parser.add_argument("--samples", type=int, default=33, help="as the paper (default 33)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing of samples")
    parser.add_argument("--out", type=Path, required=True, help="the folder for study.html and key.json")
    parser.set_defaults(run=_study)
    parser = commands.add_parser("study-result", help="evaluators' files to the two columns of Table 1")
    parser.add_argument("key", type=Path, help="key.json, which `evaluate study` wrote")
    parser.add_argument("files", type=Path, nargs="+", help="what evaluators saved")
    parser.add_argument("--out", type=Path, help="write the shares as JSON, for `evaluate report --study`")
    parser.set_defaults(run=_study_result)


def _study(options: argparse.Namespace) -> None:
    need("evaluate study", {"jinja2": "Jinja2"}, "eval")
    from .study.kit import draw_samples, write_kit

    if options.samples < 1:
        raise FlexIPError(f"--samples is {options.samples}; expected at least 1")
    benchmark = open_benchmark(options.benchmark, options.form)
    sets = read_sets(benchmark, options.pictures, None, beside=False)
    page, key = write_kit(draw_samples(sets, options.samples, options.seed), options.out, options.seed)
    print(f"{page}: give this to evaluators\n{key}: keep this; it says whose pictures they are")


def _study_result(options: argparse.Namespace) -> None:
    from .study.result import read_result

    result = read_result(options.key, options.files)
    print(f"{result.evaluators} evaluators; percent of choices, 95 % intervals by bootstrap over evaluators")
    for method, own in result.shares.items():
        cells = [f"{q} {own[q]['value']:.1f} [{own[q]['low']:.1f}, {own[q]['high']:.1f}]" for q in own]
        print(f"{method}: {'   '.join(cells)}")
    for problem in result.problems:
        print(f"problem: {problem}")
    if options.out is not None:
        write_json(options.out, result.shares)


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("generate", help="draw a benchmark's pictures with a base and an adapter")
    add_benchmark_choice(parser)
    add_generate_options(parser)
