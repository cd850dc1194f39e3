"""`python -m flexip_model demo-model STAGE`: the shipped model from the public packages, stage by stage."""

from __future__ import annotations

import argparse
import logging
from math import inf
from pathlib import Path

from ..common.errors import FlexIPError
from ..common.extras import need

log = logging.getLogger(__name__)

MAKE = ("data", "names", "train", "export", "evaluate")
OTHERS = ("bring", "check", "heldout", "scenes", "evaluate-adapters", "probe")
WORK = Path.home() / ".cache" / "flexip" / "demo-model"
"""Outside the clone, so that a new clone goes on from the same downloads and states."""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `demo-model` to the command line."""
    parser = commands.add_parser("demo-model", help="make the model that ships with the pack, from public packages")
    parser.add_argument(
        "stage",
        choices=("make", *MAKE, *OTHERS),
        help="one stage, or `make` for all of them; a stage goes on where it stopped. `bring` writes what a machine "
        "with a card and without a network needs; `check` measures the shipped files and compares them with what is "
        "on record; `heldout` draws the list of held-out drawings from the data anew, into the work folder; "
        "`scenes` writes drawn scenes with captions as a data folder, for trying `train`; "
        "`evaluate-adapters` measures several adapters beside one base, without a network and on a card where there "
        "is one; `probe` tells where a likeness is lost on its way from the reference to the picture",
    )
    parser.add_argument(
        "--work", type=Path, default=WORK, help="folder for downloads, data and states (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="where `export` (default: models/demo) and `scenes` write")
    parser.add_argument(
        "--groups",
        type=int,
        default=2000,
        metavar="N",
        help="of either kind that `scenes` writes (default %(default)s)",
    )
    train = parser.add_argument_group("train")
    train.add_argument("--seconds", type=float, default=inf, help="of this leg (default: no end)")
    stages = "vae, clip, dino, base, tokens, places, keys or adapters (default)"
    train.add_argument("--until", metavar="STAGE", help=f"the last stage: {stages}")
    train.add_argument(
        "--plan", default="{}", metavar="JSON", help='changes to the plan, such as {"base": {"seconds": 600}}'
    )
    train.add_argument("--vae", type=Path, help="folder of a VAE to begin from, such as models/demo/vae")
    train.add_argument(
        "--start", type=Path, metavar="FOLDER", help="adapters begin from the files KIND-seedN.safetensors in it"
    )
    train.add_argument(
        "--networks",
        type=Path,
        metavar="FOLDER",
        help="an exported folder, such as models/demo: its text encoder, VAE, encoders and base stand for these stages",
    )
    train.add_argument(
        "--bring",
        type=Path,
        metavar="FOLDER",
        help="`bring` writes it; `train` reads it in place of `data` and `names`",
    )
    train.add_argument(
        "--returns", type=Path, metavar="FOLDER", help="where finished stages go, in files of at most 15 MiB"
    )
    train.add_argument(
        "--returned", type=Path, metavar="FOLDER", help="such a folder, for `train` to go on from or `export` to read"
    )
    train.add_argument(
        "--processes", type=int, help="processes that draw recipes (default: one for each core; 0: none of their own)"
    )
    parser.add_argument(
        "--subjects",
        type=int,
        metavar="N",
        help="held-out subjects: `check` has 6, the others 51",
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


def _run(options: argparse.Namespace) -> None:
    if options.stage == "evaluate-adapters":
        _evaluate_adapters(options)
        return
    if options.stage in ("make", "data", "export", "evaluate", "check", "probe"):
        need("making the model", {"PIL": "pillow", "resvg_py": "resvg-py"})
    if options.stage in ("make", "evaluate", "check"):
        need("measuring the model", {name: name for name in ("matplotlib", "scipy", "torchvision")}, "eval")
    from .making.plan import STAGES, plan_of
    from .workshop import SHIPPED, Workshop

    if options.seconds <= 0 or (options.processes is not None and options.processes < 0):
        raise FlexIPError("seconds must be above 0 and processes at least 0")
    if options.until not in (None, *STAGES):
        raise FlexIPError(f"there is no stage {options.until} of `train`; expected one of {', '.join(STAGES)}")
    workshop = Workshop(options.work, options.out or SHIPPED, plan_of(options.plan))
    for stage in MAKE if options.stage == "make" else [options.stage]:
        log.info(f"== {stage}")
        if stage == "train":
            done = workshop.train(
                options.until or STAGES[-1],
                start_vae=options.vae,
                seconds=options.seconds,
                processes=options.processes,
                brought=options.bring,
                returned=options.returned,
                returns=options.returns,
                start=options.start,
                networks=options.networks,
            )
            if not done or options.until not in (None, STAGES[-1]):
                return
        elif stage == "bring":
            if options.bring is None:
                raise FlexIPError("bring needs --bring FOLDER, where it writes")
            workshop.bring(options.bring)
        elif stage == "export":
            workshop.export(options.returned)
        elif stage in ("data", "names"):
            getattr(workshop, stage)()
        elif stage == "scenes":
            if options.out is None or options.groups < 1:
                raise FlexIPError("scenes needs --out FOLDER, where it writes, and at least 1 of --groups")
            workshop.scenes(options.groups)
        elif stage == "probe":
            workshop.probe()
        elif stage == "heldout":
            log.info(f"{workshop.heldout()}")
        else:
            _measure(options, stage, workshop.out, workshop.work)


def _measure(options: argparse.Namespace, stage: str, out: Path, work: Path) -> None:
    from .evaluation.record import check, evaluate
    from .evaluation.subjects import CONCEPTS
    from .workshop import SHIPPED

    if stage == "evaluate":
        images = options.out or SHIPPED.parents[1] / "docs" / "images"
        subjects = CONCEPTS if options.subjects is None else options.subjects
        given = {"rows": options.rows, "adapters": options.adapters, "noises": options.noises}
        evaluate(out, work, images, **given, subjects=subjects)
    else:
        check(out, work, 6 if options.subjects is None else options.subjects)


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
