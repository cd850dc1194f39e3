"""The commands `train CONFIG` and `export RUN`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.console import shown_log
from ..common.errors import FlexIPError
from ..common.extras import need

if TYPE_CHECKING:
    from ..method.config import FlexIPConfig
    from .configs.options import TrainConfig
    from .shared import state

NEEDED = {
    "accelerate": "accelerate",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "tensorboard": "tensorboard",
    "yaml": "pyyaml",
    "PIL": "pillow",
}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train` and `export` to the command line."""
    train = commands.add_parser("train", help="train an adapter from packed data, or go on with a run")
    _train_arguments(train)
    train.set_defaults(run=_train)
    export = commands.add_parser("export", help="write a run's newest checkpoint as an adapter file for the nodes")
    export.add_argument("run_folder", type=Path, metavar="RUN", help="the run's output folder")
    export.add_argument("out", type=Path, nargs="?", help="the .safetensors file (default: in RUN)")
    export.add_argument("--step", type=int, help="a checkpoint's step (default: the newest)")
    export.add_argument(
        "--calibrate",
        type=int,
        metavar="N",
        help="measure the dial on N validation subjects of the run's data first, so that the "
        "picture changes over all of it",
    )
    export.set_defaults(run=_export)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m flexip_model.train CONFIG`, which is what `accelerate launch -m` starts; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flexip_model.train", description="train a FlexIP adapter")
    _train_arguments(parser)
    try:
        with shown_log():
            _train(parser.parse_args(arguments))
    except FlexIPError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, or paper, one_card or demo")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value of the config, for example --set batch=8 --set references.white=0.3",
    )


def _train(options: argparse.Namespace) -> None:
    need("training", NEEDED)
    import yaml

    from .configs.read import load_config
    from .trainer import Trainer

    overrides: dict[str, Any] = {}
    for text in options.set:
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
    trainer = Trainer(load_config(options.config, overrides))
    trainer.run()
    if trainer.is_main_process:
        print(f"adapter file: {trainer.export()}")


def _export(options: argparse.Namespace) -> None:
    from ..method.config import FlexIPConfig
    from . import result
    from .configs.read import from_dict
    from .shared import state

    folder = options.run_folder / "checkpoints"
    steps = state.list_steps(folder)
    if not steps:
        raise FlexIPError(f"there is no checkpoint in {folder}; give the output folder of a run")
    if options.step is not None and options.step not in steps:
        raise FlexIPError(f"there is no checkpoint of step {options.step} in {folder}; there are {steps}")
    found = state.load(folder, steps[-1] if options.step is None else options.step)
    config, adapter = from_dict(found.info["config"]), FlexIPConfig.from_json(found.info["adapter"])
    if options.calibrate is not None:
        adapter = replace(adapter, dial=_dial(config, adapter, found, options.calibrate))
    path = result.write(
        options.run_folder, found, config=config, adapter=adapter, about=found.info["about"], target=options.out
    )
    print(path)


def _dial(config: TrainConfig, adapter: FlexIPConfig, found: state.Checkpoint, subjects: int) -> tuple[float, ...]:
    from ..method.adapters import FlexIPAdapter
    from .calibrate import calibrate

    if subjects < 1:
        raise FlexIPError(f"--calibrate is {subjects}; expected at least 1 subject")
    module = FlexIPAdapter(adapter)
    module.load_state_dict(found.parts["ema"])
    return calibrate(config, module.eval(), subjects)
