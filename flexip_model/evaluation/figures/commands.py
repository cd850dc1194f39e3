"""`figure strip`, `figure style` and `figure dial`: the paper's Figs. 5, 6 and 1 of any adapter."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import FlexIPError
from ...common.extras import need
from ...common.gammas import parse_gammas
from .options import FLEXIP, IP_ADAPTER, SMALL, add_drawing, read_drawing

if TYPE_CHECKING:
    from ..generate.drawer import Files
    from ..metrics.measure import Measure

NO_STYLE = (
    f"{SMALL} It was trained to keep subjects, in three styles that words choose: it cannot take a style out of a "
    "picture."
)
STAND_IN = (
    "No IP-Adapter was named: in its place stands this adapter's preservation branch alone over its strength, which is "
    "an IP-Adapter's form and not a published IP-Adapter."
)


def add_figure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `figure` with its own commands."""
    figure = commands.add_parser("figure", help="the paper's figures of any adapter, as a picture and a JSON file")
    own = figure.add_subparsers(title="commands", required=True, metavar="COMMAND")
    strip = own.add_parser("strip", help="Fig. 5: one subject, one prompt, γ from 0 to 1")
    _add_subject(strip)
    strip.add_argument("--gammas", default="0:1:0.25", help="γ: first:last:step, or numbers with commas (0:1:0.25)")
    strip.add_argument("--seeds", type=int, default=1, help="rows, seeds from 0 (default 1)")
    strip.set_defaults(run=_strip)
    style = own.add_parser("style", help="Fig. 6: style transfer, methods side by side")
    style.add_argument("out", type=Path, help="the new PNG")
    style.add_argument("--references", type=Path, nargs="+", required=True, help="pictures of a style, or subjects")
    style.add_argument("--prompts", nargs="+", required=True, help="each is drawn with each reference")
    style.add_argument("--gammas", default="0.6", help="FlexIP's γ, one column each (0.6)")
    style.add_argument("--scales", default="0.6", help="IP-Adapter's scale, one column each (0.6)")
    style.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    style.set_defaults(run=_style)
    dial = own.add_parser("dial", help="Fig. 1: FlexIP against IP-Adapter over the dial, pictures and scores")
    _add_subject(dial)
    dial.add_argument("--gammas", default="0:1:0.125", help="γ and scale: first:last:step or numbers (0:1:0.125)")
    dial.add_argument("--seeds", type=int, default=3, help="that curves are the mean of, from 0 (default 3)")
    dial.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="ROLE=FOLDER",
        help="as of `evaluate score`: clip for CLIP-T and CLIP-I, dino for DINO-I (default: --clip and --dino)",
    )
    dial.set_defaults(run=_dial)
    for parser in (strip, style, dial):
        add_drawing(parser)


def _add_subject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, help="a picture of the subject")
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument("out", type=Path, help="the new PNG")


def _strip(options: argparse.Namespace) -> None:
    from .strip import strip

    methods, drawing = read_drawing(options)
    if len(methods) > 1:
        raise FlexIPError("--adapter and --ip-adapter are both named; a strip turns one knob: draw one after the other")
    values, seeds = parse_gammas(options.gammas), _seeds(options.seeds)
    _write(options.out, *strip(methods[0][1], drawing, options.reference, options.prompt, values, seeds))


def _style(options: argparse.Namespace) -> None:
    from ..generate.drawer import Files
    from .style import Column, style

    methods, drawing = read_drawing(options, NO_STYLE)
    gammas, scales = tuple(parse_gammas(options.gammas)), tuple(parse_gammas(options.scales))
    columns = [Column(name, files, scales if name.startswith(IP_ADAPTER) else gammas) for name, files in methods]
    first = methods[0][1]
    columns.append(Column("base alone", Files(first.base, first.base_configs), (0.0,)))
    _write(options.out, *style(columns, drawing, options.references, options.prompts, options.seed))


def _dial(options: argparse.Namespace) -> None:
    need("figure dial", {"scipy": "scipy", "matplotlib": "matplotlib"}, "eval")
    from .dial import Turned, dial

    methods, drawing = read_drawing(options)
    turned = [Turned(name, files) for name, files in methods]
    if [name for name, _ in methods] == [FLEXIP]:
        turned.append(Turned("preservation branch alone", methods[0][1], by_strength=True))
        drawing = replace(drawing, notes=(*drawing.notes, STAND_IN))
    measure = _measure(options, methods[0][1], drawing.device)
    values, seeds = parse_gammas(options.gammas), _seeds(options.seeds)
    _write(options.out, *dial(turned, drawing, measure, options.reference, options.prompt, values, seeds))


def _measure(options: argparse.Namespace, files: Files, device: Any) -> Measure:
    """The metrics, by default of the adapter's own encoders."""
    from ..metrics.measure import Measure
    from ..metrics.weights import Weights
    from .dial_scores import FIDELITY, PRESERVATION

    named = Weights.read(None, options.weights).places
    own = {"clip": files.clip, "dino": files.dino}
    return Measure(
        Weights({role: path for role, path in own.items() if path is not None} | named),
        (*PRESERVATION, FIDELITY),
        device,
    )


def _seeds(count: int) -> list[int]:
    if count < 1:
        raise FlexIPError(f"--seeds is {count}; expected at least 1")
    return list(range(count))


def _write(out: Path, sheet: Any, record: dict[str, Any]) -> None:
    from .drawing import write_figure

    write_figure(out, sheet, record)
    print(f"{out}: {sheet.width} × {sheet.height} pixels; what was drawn: {out.with_suffix('.json')}")
