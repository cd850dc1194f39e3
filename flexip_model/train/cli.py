"""The commands `train CONFIG`, `export RUN` and `curves RUN`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.console import run_command
from ..common.errors import FlexIPError
from ..common.extras import need

if TYPE_CHECKING:
    from ..method.config import FlexIPConfig
    from .configs.options import TrainConfig
    from .shared import state

log = logging.getLogger(__name__)

NEEDED = {
    "accelerate": "accelerate",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "tensorboard": "tensorboard",
    "yaml": "pyyaml",
    "PIL": "pillow",
}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train`, `export` and `curves` to the command line."""
    train = commands.add_parser("train", help="train an adapter from packed data, or go on with a run")
    _train_arguments(train)
    train.set_defaults(run=_train)
    export = commands.add_parser("export", help="write a run's newest checkpoint as an adapter file for the nodes")
    export.add_argument("run_folder", type=Path, metavar="RUN", help="the run's output folder")
    export.add_argument("out", type=Path, nargs="?", help="the .safetensors file (default: in RUN)")
    which = export.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="a checkpoint's step (default: the newest)")
    which.add_argument("--best", action="store_true", help="the checkpoint with the lowest validation loss")
    export.add_argument(
        "--calibrate",
        type=int,
        metavar="N",
        help="measure the dial on N validation subjects of the run's data first, so that the "
        "picture changes over all of it",
    )
    _set_argument(export, "change the run's title, license or dial for this file, for example --set dial.steps=30")
    export.set_defaults(run=_export)
    curves = commands.add_parser("curves", help="draw one value of several runs over their steps")
    curves.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="output folders of runs")
    curves.add_argument("--out", type=Path, required=True, metavar="FILE", help="the PNG")
    curves.add_argument("--value", default="validation/all", help="a name as in TensorBoard (default: %(default)s)")
    curves.set_defaults(run=_curves)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m flexip_model.train CONFIG`, which is what `accelerate launch -m` starts; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flexip_model.train", description="train a FlexIP adapter")
    _train_arguments(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _train(options))


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, or paper, one_card, fine_tune or demo")
    _set_argument(
        parser,
        "change one value of the config, for example --set batch=8 --set references.white=0.3; a path is relative to "
        "the working folder, in the config to the config's own",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what would be trained, and how long it takes and how much memory by 20 steps that are not kept",
    )


def _set_argument(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=what)


def _train(options: argparse.Namespace) -> None:
    need("training", NEEDED)
    from .configs.read import load_config
    from .dry_run import dry_run
    from .trainer import Trainer

    config = load_config(options.config, _overrides(options.set))
    if options.dry_run:
        dry_run(config)
        return
    trainer = Trainer(config)
    trainer.run()
    if trainer.is_main_process:
        print(f"adapter file: {trainer.export()}")


def _overrides(given: Sequence[str]) -> dict[str, Any]:
    """What `--set` was given, by dotted key.

    Raises:
        FlexIPError: no value, or one that is not YAML.
    """
    import yaml

    overrides: dict[str, Any] = {}
    for text in given:
        key, found, value = text.partition("=")
        if not found:
            raise FlexIPError(f"--set {text} lacks a value; write --set KEY=VALUE")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise FlexIPError(
                f"--set {text}: the value is not YAML ({' '.join(str(error).split())}); put text with a "
                "colon or brackets in quotes"
            ) from error
    return overrides


def _export(options: argparse.Namespace) -> None:
    need("an export", {"yaml": "pyyaml", "pydantic": "pydantic"})
    from ..method.config import FlexIPConfig
    from . import result
    from .configs.read import change, from_dict
    from .watching.validation import read_best

    folder = options.run_folder / "checkpoints"
    step = options.step
    if options.best:
        best = read_best(folder)
        if best is None:
            raise FlexIPError(f"no checkpoint in {folder} is marked as the best: the run had no validation groups")
        step = best[0]
    found = _checkpoint(folder, step)
    overrides = _overrides(options.set)
    wrong = [key for key in overrides if key not in ("title", "license") and key.split(".")[0] != "dial"]
    if wrong:
        raise FlexIPError(
            f"--set {wrong[0]} is over: the run was trained with it; an export takes title, license, dial"
        )
    config = from_dict(change(found.info["config"], overrides))
    adapter, about = FlexIPConfig.from_json(found.info["adapter"]), found.info["about"]
    if options.calibrate is not None:
        adapter = replace(adapter, dial=_dial(config, adapter, found, options.calibrate))
        about = {**about, "dial": {"subjects": options.calibrate, **asdict(config.dial)}}
    path = result.write(options.run_folder, found, config=config, adapter=adapter, about=about, target=options.out)
    print(path)


def _curves(options: argparse.Namespace) -> None:
    need("curves", {"matplotlib": "matplotlib"}, "eval")
    from .watching.curves import draw_curves

    draw_curves(options.runs, options.value, options.out)
    print(options.out)


def _checkpoint(folder: Path, step: int | None) -> state.Checkpoint:
    """The checkpoint of a step; without one the newest that is whole, and what is wrong with newer ones is said.

    Raises:
        FlexIPError: there is none; the one of that step is damaged.
    """
    from .shared import state

    steps = state.list_steps(folder)
    names = ", ".join(map(str, steps))
    if not steps:
        raise FlexIPError(f"there is no checkpoint in {folder}; give the output folder of a run")
    if step is None:
        found, complaints = state.load_newest(folder, set_aside=False)
        for complaint in complaints:
            log.info(complaint)
        if found is None:
            raise FlexIPError(f"no checkpoint in {folder} is whole (steps {names}); start the run again")
        return found
    if step not in steps:
        raise FlexIPError(f"there is no checkpoint of step {step} in {folder}; there are those of steps {names}")
    try:
        return state.load(folder, step)
    except FlexIPError as error:
        raise FlexIPError(f"{error}; give another step with --step, there are {names}") from error


def _dial(config: TrainConfig, adapter: FlexIPConfig, found: state.Checkpoint, subjects: int) -> tuple[float, ...]:
    from ..method.adapters import FlexIPAdapter
    from .calibrate import calibrate

    if subjects < 1:
        raise FlexIPError(f"--calibrate is {subjects}; expected at least 1 subject")
    module = FlexIPAdapter(adapter)
    module.load_state_dict(found.parts["ema"])
    return calibrate(config, module.eval(), subjects)
