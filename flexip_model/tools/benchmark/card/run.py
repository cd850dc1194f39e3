"""The parts of the check, one after the other, each in processes of its own and with a limit of its own."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ....comfyui.process import find_comfyui
from ....common.errors import FlexIPError
from ..in_process import ON_CPU, TookTooLong, measured
from .plan import CARD, GAMMAS, SEED, TINY, Plan
from .report import Figure, Part, Report, line

HERE = "flexip_model.tools.benchmark.card"
COMFYUI = "nodes.dev.card"
LOW_VRAM = 2.5
"""GB that ComfyUI may use in the lowvram mode, about half of SD1.5's weights in fp16 beside the run's own (our choice):
on a large card the mode alone would keep all of them there."""
DEMO_SIZE = 128
TAIL = 12
"""Lines of a failed part's output that the report keeps."""
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy")


@dataclass(frozen=True)
class Machine:
    """Where the check runs.

    Attributes:
        device: `cuda` or `cpu`.
        memory: of the card in GB; 0 on the CPU.
        comfyui: the folder; None where there is none, and its figures are left out with a sentence.
    """

    device: str
    memory: float
    comfyui: Path | None


Measure = Callable[..., Iterator[Figure]]
"""`measured` with the part's limit and log."""


def card(options: argparse.Namespace) -> None:
    """Run the check; `options.out` gets card.json, card.md and card.log.

    Raises:
        FlexIPError: no --out, a part that does not exist, no GPU and no --tiny; or, at the end, that parts failed.
    """
    import torch

    if options.out is None:
        raise FlexIPError("the card check needs --out FOLDER for its report")
    names = options.only.split(",") if options.only else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        raise FlexIPError(f"there is no part {unknown[0]!r} of the card check; choose from {', '.join(PARTS)}")
    cuda = torch.cuda.is_available()
    if not cuda and not options.tiny:
        raise FlexIPError("this machine has no GPU that torch can use; --tiny rehearses the check on the CPU")
    plan = TINY if options.tiny else CARD
    total = plan.total if options.limit is None else options.limit
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if cuda else 0.0
    folder: Path = options.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    machine = Machine("cuda" if cuda else "cpu", memory, _comfyui())
    report = Report(about(machine, options.tiny), [Part(name, PARTS[name].title) for name in names])
    run_parts(report, folder, plan, machine, total)
    if failed := [part.name for part in report.parts if part.state != "done"]:
        raise FlexIPError(f"not measured to the end: {', '.join(failed)}; {folder / 'card.md'} says why")


def run_parts(report: Report, folder: Path, plan: Plan, machine: Machine, total: float) -> None:
    """Run the report's parts, none longer than its limit and all together no longer than `total` seconds."""
    began = time.monotonic()
    report.write(folder)
    print("; ".join(f"{name} {value}" for name, value in report.about.items()), flush=True)
    with (folder / "card.log").open("w", encoding="utf-8") as log:
        for part in report.parts:
            left = total - (time.monotonic() - began)
            print(f"[{time.monotonic() - began:4.0f} s] {part.title}", flush=True)
            _run_part(part, report, folder, plan, machine, min(PARTS[part.name].limit * plan.patience, left), log)
            if part.error:
                print(part.error, flush=True)
            print(f"[{time.monotonic() - began:4.0f} s] {part.name}: {part.state}", flush=True)


def _run_part(
    part: Part, report: Report, folder: Path, plan: Plan, machine: Machine, limit: float, log: IO[str]
) -> None:
    started, printed = time.monotonic(), log.tell()
    part.state = "running"

    def measure(call: str, given: dict[str, Any], arguments: tuple[str, ...] | None = None) -> Iterator[Figure]:
        if arguments is None:
            where: dict[str, Any] = {}
        elif machine.comfyui is None:
            raise FlexIPError("no ComfyUI was found; set COMFYUI_PATH to its folder")
        else:
            where = {"comfyui": machine.comfyui, "arguments": (*arguments, *(() if machine.memory else ON_CPU))}
        left = limit - (time.monotonic() - started)
        if left <= 0:
            raise TookTooLong(f"stopped at its limit of {limit:.0f} s")
        return measured(call, given, limit=left, log=log, **where)

    try:
        with tempfile.TemporaryDirectory(prefix="flexip-card-") as scratch:
            for figure in PARTS[part.name].run(measure, plan, machine, scratch):
                if figure:
                    part.figures.append(figure)
                    print(f"  {line(figure)}", flush=True)
                part.seconds = time.monotonic() - started
                report.write(folder)
        part.state = "done"
    except TookTooLong:
        part.state = f"stopped at its limit of {limit:.0f} s" if limit > 0 else "not begun, the time was over"
    except FlexIPError as error:
        part.state = "failed"
        log.flush()
        part.error = "\n".join([str(error), *_tail(folder / "card.log", printed)])
    part.seconds = time.monotonic() - started
    report.write(folder)


def _tail(path: Path, printed: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(printed)
        return file.read().decode("utf-8", "replace").splitlines()[-TAIL:]


def _parity(measure: Measure, plan: Plan, machine: Machine, scratch: str) -> Iterator[Figure]:
    shared = {"models": plan.models, "dtypes": plan.dtypes, "gammas": GAMMAS, "seed": SEED, "folder": scratch}
    yield from measure(f"{COMFYUI}:predict", {**shared, "demo_size": DEMO_SIZE, "size": plan.parity_size}, ())
    yield from measure(f"{HERE}.parity:parity", {**shared, "device": machine.device})


def _steps(measure: Measure, plan: Plan, machine: Machine, scratch: str) -> Iterator[Figure]:
    shared = {"full": plan.full, "size": plan.size, "dtype": plan.dtype, "rounds": plan.rounds}
    own = {"batches": plan.batches, "repeats": plan.repeats, "device": machine.device}
    yield from measure(f"{HERE}.steps:steps", {**shared, **own})
    yield from measure(f"{COMFYUI}:steps", {**shared, "steps": plan.repeats, "seed": SEED}, ())


def _compiled(whole: bool) -> Callable[..., Iterator[Figure]]:
    def run(measure: Measure, plan: Plan, machine: Machine, scratch: str) -> Iterator[Figure]:
        given = {"full": plan.full, "size": plan.size, "dtype": plan.dtype, "rounds": plan.rounds}
        own = {"batch": plan.batches[0], "repeats": plan.repeats, "device": machine.device, "whole": whole}
        return measure(f"{HERE}.steps:compiled", {**given, **own})

    return run


def _memory(measure: Measure, plan: Plan, machine: Machine, scratch: str) -> Iterator[Figure]:
    given = {"full": plan.full, "size": plan.size, "dtype": plan.dtype, "steps": 4, "seed": SEED, "folder": scratch}
    if not machine.memory:  # ComfyUI has no modes there
        yield from measure(f"{COMFYUI}:memory", {**given, "mode": "the CPU's"}, ())
        return
    keep = f"{max(0.0, machine.memory * 1e9 / 2**30 - LOW_VRAM):.2f}"
    modes = {
        "normal": (),
        f"lowvram, {LOW_VRAM:g} GB of the card": ("--lowvram", "--reserve-vram", keep),
        "novram": ("--novram",),
    }
    for mode, arguments in modes.items():
        yield from measure(f"{COMFYUI}:memory", {**given, "mode": mode}, arguments)


def _training(measure: Measure, plan: Plan, machine: Machine, scratch: str) -> Iterator[Figure]:
    given = {"full": plan.full, "size": plan.size, "batch": plan.batch}
    return measure(f"{HERE}.trainer:training", {**given, "steps": plan.train_steps, "rounds": plan.train_rounds})


def _gradients(measure: Measure, plan: Plan, machine: Machine, scratch: str) -> Iterator[Figure]:
    return measure(f"{HERE}.trainer:gradients", {"size": 64, "batch": 2, "device": machine.device})


@dataclass(frozen=True)
class Kind:
    """A part: its title, its limit in seconds, and what it measures."""

    title: str
    limit: float
    run: Callable[[Measure, Plan, Machine, str], Iterator[Figure]]


PARTS = {
    "parity": Kind("Parity of the hosts", 70, _parity),
    "steps": Kind("Cost of a step", 60, _steps),
    "gradients": Kind("Gradients on the card and on the CPU", 40, _gradients),
    "memory": Kind("ComfyUI's memory modes", 70, _memory),
    "training": Kind("The trainer against a plain loop", 120, _training),
    "compile-blocks": Kind("Cost of a step, its blocks compiled", 90, _compiled(False)),
    "compile-whole": Kind("Cost of a step, the UNet compiled", 120, _compiled(True)),
}


def about(machine: Machine, tiny: bool) -> dict[str, str]:
    """What a reader has to know of where the figures come from."""
    import torch

    found = {
        "device": torch.cuda.get_device_name() if machine.memory else "CPU",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        "Python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "CUDA": torch.version.cuda or "none",
        "ComfyUI": _comfyui_version(machine.comfyui),
        "seed": str(SEED),
        "weights": "random, of SD1.5's sizes, and the small model's",
    }
    if tiny:
        found["plan"] = "tiny: a rehearsal, its figures say nothing"
        found["weights"] = "the small model's"
    if machine.memory:
        found["device"] += f" ({machine.memory:.0f} GB)"
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _comfyui() -> Path | None:
    try:
        return find_comfyui()
    except FlexIPError:
        return None


def _comfyui_version(folder: Path | None) -> str:
    if folder is None:
        return "none"
    file = folder / "comfyui_version.py"
    quoted = file.read_text(encoding="utf-8").split('"') if file.is_file() else []
    return quoted[-2] if len(quoted) > 2 else "unknown"
