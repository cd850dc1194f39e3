"""`python -m flexip_model demo-model STAGE`: the shipped model from the public packages, stage by stage."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from ..common.errors import FlexIPError
from ..common.extras import need
from ..common.parallel import run
from .stages.recipe import ADAPTER_STEPS, LESSONS, PICTURES, PLANS, SEED

log = logging.getLogger(__name__)

STAGES = (
    "data",
    "vae",
    "names",
    "lessons",
    "base",
    "encoders",
    "latents",
    "tokens",
    "together",
    "adapter",
    "export",
    "evaluate",
)
WORK = Path.home() / ".cache" / "flexip" / "demo-model"
"""Outside the clone, so that a new clone goes on from the same downloads and states."""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `demo-model` to the command line."""
    parser = commands.add_parser("demo-model", help="make the model that ships with the pack, from public packages")
    parser.add_argument(
        "stage",
        choices=("make", *STAGES, "check", "heldout", "evaluate-adapters"),
        help="one stage, or `make` for all of them; a stage goes on where it stopped. `check` measures "
        "the shipped files and compares them with what is on record; `heldout` draws the list of held-out drawings "
        "from the data anew, into the work folder; `evaluate-adapters` measures several adapters beside one base, "
        "without a network and on a card where there is one",
    )
    parser.add_argument(
        "--work", type=Path, default=WORK, help="folder for downloads, data and states (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="where `export` writes (default: models/demo)")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="pictures composed for the latents")
    parser.add_argument("--lessons", type=int, default=LESSONS, help="pictures composed for the base")
    parser.add_argument(
        "--vae",
        type=Path,
        help="folder of a VAE that is made, such as models/demo/vae; the stage `vae` is left out then",
    )
    for name, steps in _steps().items():
        parser.add_argument(f"--steps-{name}", type=int, default=steps, metavar="N")
    parser.add_argument(
        "--processes",
        type=int,
        default=2,
        help="processes; without a card they train side by side. Batches grow with their number",
    )
    parser.add_argument(
        "--subjects",
        type=int,
        metavar="N",
        help="held-out subjects: `check` has 6, `evaluate-adapters` 51",
    )
    parser.add_argument(
        "--noises",
        type=int,
        default=4,
        metavar="N",
        help="noises a prompt, of --adapters; fewer are faster",
    )
    parser.add_argument(
        "--rows", type=Path, help="where `evaluate` and `evaluate-adapters` keep what is measured (default: in --work)"
    )
    parser.add_argument("--adapters", type=Path, help="a folder of KIND-seedN.safetensors that are measured too")
    parser.add_argument("--names", nargs="+", default=[], help="`evaluate-adapters` measures these alone")
    parser.add_argument("--judge", type=Path, help="`evaluate-adapters` reads the judge's weights here")
    parser.set_defaults(run=_run)


def _steps() -> dict[str, int]:
    return {**{name: plan.steps for name, plan in PLANS.items()}, "adapter": ADAPTER_STEPS}


def _run(options: argparse.Namespace) -> None:
    if options.stage == "evaluate-adapters":
        _evaluate_adapters(options)
        return
    need("making the model", {"PIL": "pillow", "resvg_py": "resvg-py"})
    if options.stage in ("make", "evaluate", "check"):
        need("measuring the model", {name: name for name in ("matplotlib", "scipy", "torchvision")}, "eval")
    import torch

    from .evaluation.record import check, evaluate
    from .workshop import SHIPPED, Workshop

    steps = {name: getattr(options, f"steps_{name}") for name in _steps()}
    if min(options.pictures, options.lessons, options.processes, *steps.values()) < 1:
        raise FlexIPError("pictures, lessons, steps and processes must be at least 1")
    # A card trains alone, with the whole batch: only composing, encoding and measuring are shared out there.
    trainers = 1 if torch.cuda.is_available() else options.processes
    plans = {
        name: replace(plan, steps=steps[name], batch=plan.batch * (options.processes // trainers))
        for name, plan in PLANS.items()
    }
    workshop = Workshop(options.work, options.out or SHIPPED, plans, options.vae)
    images = options.out or SHIPPED.parents[1] / "docs" / "images"
    stages = [s for s in STAGES if s != "vae" or options.vae is None] if options.stage == "make" else [options.stage]
    for stage in stages:
        log.info(f"== {stage}")
        if stage == "latents":
            workshop.latents(options.pictures, options.processes)
        elif stage == "lessons":
            workshop.lessons(options.lessons, options.processes)
        elif stage == "adapter":
            workshop.adapter(steps["adapter"], trainers)
        elif stage in ("data", "export"):
            getattr(workshop, stage)()
        elif stage == "evaluate":
            evaluate(
                workshop.out,
                workshop.work,
                images,
                rows=options.rows,
                adapters=options.adapters,
                noises=options.noises,
            )
        elif stage == "heldout":
            log.info(f"{workshop.heldout()}")
        elif stage == "check":
            check(workshop.out, workshop.work, 6 if options.subjects is None else options.subjects)
        else:
            run(getattr(workshop, stage), trainers, seed=SEED)


def _evaluate_adapters(options: argparse.Namespace) -> None:
    need("measuring adapters", {name: name for name in ("PIL", "scipy", "torchvision")}, "eval")
    from .evaluation.judge import fetch
    from .evaluation.rows import evaluate_adapters
    from .evaluation.subjects import CONCEPTS
    from .workshop import SHIPPED

    if options.noises < 1 or (options.subjects is not None and options.subjects < 1):
        raise FlexIPError("subjects and noises must be at least 1")
    evaluate_adapters(
        options.out or SHIPPED,
        options.work / "store",
        options.judge or fetch(options.work / "downloads"),
        options.rows or options.work / "evaluation",
        adapters=options.adapters,
        names=options.names,
        noises=options.noises,
        subjects=CONCEPTS if options.subjects is None else options.subjects,
    )
