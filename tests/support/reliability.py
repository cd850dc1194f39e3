"""The promises, which tests show each, and the table of what came out.

    python run.py test -m promise --reliability=docs/reliability.md

A test names its promises with `@pytest.mark.promise(ROW, …)` and tells what it measured with the fixture `figures`.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

PROMISES = {
    1: "The code holds no eval, no exec, nothing hidden, and installs nothing",
    2: "Importing writes nothing, connects nowhere and starts nothing",
    3: "No pickle is opened, whatever its name",
    4: "No input leads to a file outside its folder",
    5: "A damaged file gives one sentence with its path",
    6: "A huge header costs little memory and time",
    7: "A whole file with the wrong content is refused by what is wrong",
    8: "Another encoder is refused by its name before sampling",
    9: "Strength 0 is the model without FlexIP; γ = 1 and γ = 0 are one branch each",
    10: "The model that was patched stays as it was",
    11: "Clones share their weights",
    12: "Conds may be laid out in any way",
    13: "Every cond meets its own tokens under every guider",
    14: "A picture does not depend on its batch",
    15: "Prompts may differ in length, run together or one by one",
    16: "Masks lie on the right places at every size and level",
    17: "HyperTile and ToMe, at odd sizes too",
    18: "Deep Shrink, at every factor",
    19: "Every dtype of the model and of the encoders",
    20: "No attention backend and no dtype makes black pictures",
    21: "Little memory changes nothing",
    22: "Patches of other packs stay and act, before and after ours",
    23: "A kill during a save never loses the last good one",
    24: "A stopped run goes on bit for bit",
    25: "A damaged save is found and passed over",
    26: "A full disk is loud and loses nothing",
    27: "NaN never reaches the weights",
    28: "Works beside the nodes that people use",
    29: "Regions with references of their own do not touch each other",
    30: "Frames in context windows keep their own settings",
    31: "Tiles: each is right without a mask; the node's page warns of masks",
    32: "Memory does not grow from run to run",
    33: "An interrupt leaves nothing behind",
    34: "Turning γ or strength runs no encoder",
    35: "torch.compile: no graph break of ours, γ compiles nothing anew",
    36: "A range of steps is exact",
    37: "Nothing asks for one kind of hardware",
    38: "Models unload, and ComfyUI counts their memory rightly",
    39: "Pictures of every mode are read as a person sees them, or refused",
    40: "Values of another range or layout are refused, never guessed",
    41: "NaN is refused; black is a picture",
    42: "Extreme shapes need little memory",
    43: "References of mixed sizes are what each is alone",
    44: "Both encoders see the region that the crop says",
    45: "A corrupt training sample is skipped, counted and limited",
    46: "Shards run no code and lead nowhere else",
    47: "Too little memory ends a run clearly, its last save whole",
    48: "SIGTERM saves",
    49: "A damaged part cannot spoil an evaluation",
    50: "A file of a later format is refused by its version",
}
TABLE = "<!-- the table as it came out -->"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("reliability")
    group.addoption("--reliability", metavar="FILE", help="print the table of promises and write it into this file")
    group.addoption("--reliability-full", action="store_true", help="the long counts of random cases")
    group.addoption(
        "--plant",
        metavar="ROWS",
        help="plant the faults of these promises (3,9 or all), and run only the tests that must notice them",
    )
    group.addoption("--plant-results", metavar="FILE", help="where the outcome of each planted test goes, as JSON")


class Figures:
    """What a test measured, for the table."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node

    def _tell(self, row: int, **what: Any) -> None:
        self._node.user_properties.append(("promise", {"row": row, **what}))

    def worst(self, row: int, value: float, what: str, unit: str = "", lowest: bool = False) -> None:
        """Record a measured value; the table shows the largest, or the lowest, of all that have this name."""
        self._tell(row, kind="worst", value=float(value), what=what, unit=unit, lowest=lowest)

    def cases(self, row: int, passed: int, total: int, what: str) -> None:
        """Record how many of the cases that one test went through were as promised."""
        self._tell(row, kind="cases", passed=passed, total=total, what=what)

    def count(self, default: int, full: int) -> int:
        """How many random cases to run: few by default, the long count with `--reliability-full`."""
        return full if self._node.config.getoption("--reliability-full") else default


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    return Figures(request.node)


@pytest.fixture(autouse=True)
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants the fault that the test is run with, if any."""
    row = getattr(request, "param", None)
    if row is not None:
        from .planted_faults import FAULTS, Ground

        FAULTS[row].plant(Ground(request, monkeypatch))


def chosen_faults(config: pytest.Config) -> list[int]:
    rows = config.getoption("--plant")
    if rows != "all":
        return [int(row) for row in rows.split(",")] if rows else []
    from .planted_faults import FAULTS

    return sorted(FAULTS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = chosen_faults(metafunc.config)
    if rows:
        from .planted_faults import FAULTS

        mine = [row for row in rows if FAULTS[row].test == metafunc.function.__name__]
        # Once more without a fault, last: it shows that a failure came from the fault, and that the fault went away.
        settings = [*mine, None] if mine else [None]
        names = [f"fault {row}" if row else "-" for row in settings]
        metafunc.parametrize("planted", settings, indirect=True, ids=names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rows = chosen_faults(config)
    if rows:
        from .planted_faults import FAULTS

        faults = [FAULTS[row] for row in rows]
        kept = [item for item in items if any(fault.takes(item) for fault in faults)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Results(config), "flexip-results")


class Results:
    """Gathers outcomes and figures while the tests run, and prints the table."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.seeds: dict[int, set[str]] = defaultdict(set)
        self.passed: dict[int, int] = defaultdict(int)
        self.total: dict[int, int] = defaultdict(int)
        self.cases: dict[tuple[int, str], list[int]] = {}
        self.values: dict[tuple[int, str], tuple[float, str]] = {}
        self.planted: list[dict[str, Any]] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # Reports carry them: tests may run in other processes than the one that prints the table.
        for item in items:
            for mark in item.iter_markers("promise"):
                for row in mark.args:
                    item.user_properties.append(("shows", {"row": row, "seed": mark.kwargs.get("seed")}))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Any:
        report = yield
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "planted" in parameters and (call.when == "call" or call.excinfo):
            error = call.excinfo.type.__name__ if call.excinfo else ""
            self.planted.append(
                {
                    "row": parameters["planted"],
                    "test": getattr(item, "originalname", ""),
                    "when": call.when,
                    "promises": sorted({value["row"] for name, value in item.user_properties if name == "shows"}),
                    "error": error,
                    "text": str(call.excinfo.value)[:500] if call.excinfo else "",
                }
            )
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        shows = [value for name, value in report.user_properties if name == "shows"]
        rows = {value["row"] for value in shows}
        for value in shows:
            if value["seed"] is not None:
                self.seeds[value["row"]].add(str(value["seed"]))
        if report.when == "call" or report.failed:
            for row in rows:
                self.total[row] += report.when == "call" or report.when == "setup"
                self.passed[row] += report.when == "call" and report.passed
        if report.when != "call":
            return
        for told in (value for name, value in report.user_properties if name == "promise"):
            key = (told["row"], told["what"])
            if told["kind"] == "cases":
                passed, total = self.cases.get(key, (0, 0))
                self.cases[key] = [passed + told["passed"], total + told["total"]]
            elif key not in self.values or (told["value"] < self.values[key][0]) == told["lowest"]:
                self.values[key] = (told["value"], told["unit"])

    def pytest_sessionfinish(self) -> None:
        if self.config.getoption("--plant-results"):
            Path(self.config.getoption("--plant-results")).write_text(json.dumps(self.planted), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        file = self.config.getoption("--reliability")
        if not file:
            return
        terminalreporter.section("reliability")
        text = "\n".join(self.lines())
        terminalreporter.write_line(text)
        path = Path(file)
        before = path.read_text(encoding="utf-8").partition(TABLE) if path.is_file() else ("", "", "")
        path.write_text(f"{before[0].rstrip()}\n\n{TABLE}\n\n{text}\n".lstrip(), encoding="utf-8")

    def lines(self) -> Iterable[str]:
        """The table in Markdown."""
        full = self.config.getoption("--reliability-full")
        yield f"{host()}. Counts of random cases: {'the long ones' if full else 'the default'}."
        yield ""
        yield "| # | Promise | Tests passed | Cases as promised | Worst value | Seed |"
        yield "|---|---|---|---|---|---|"
        for row in sorted(set(self.total)):
            cases = "; ".join(f"{p:,}/{t:,} {what}" for (of, what), (p, t) in self.cases.items() if of == row)
            worst = "; ".join(
                f"{what} {number(value)}{unit}" for (of, what), (value, unit) in self.values.items() if of == row
            )
            seeds = ", ".join(sorted(self.seeds[row]))
            yield f"| {row} | {PROMISES[row]} | {self.passed[row]}/{self.total[row]} | {cases} | {worst} | {seeds} |"
        yield ""
        yield f"Not tried: {', '.join(not_tried())}."


def number(value: float) -> str:
    """Three digits, more just below 1; whole numbers as they are."""
    if 0.99 < value < 1:
        return f"{min(value, 0.999999):.6f}"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.3g}"


def host() -> str:
    """Where the tests ran, in one line."""
    import torch

    version = Path(os.environ.get("COMFYUI_PATH", "."), "comfyui_version.py")
    comfyui = "without ComfyUI"
    if version.is_file():
        comfyui = "ComfyUI " + re.findall(r'__version__ = "(.*)"', version.read_text(encoding="utf-8"))[0]
    cpu, information = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if information.is_file():
        names = re.findall(r"model name\s*: (.*)", information.read_text(encoding="utf-8"))
        cpu = names[0] if names else cpu
    return (
        f"{datetime.date.today()}: {comfyui}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores ({cpu}), "
        f"torch's threads: {torch.get_num_threads()}, no GPU used"
    )


def not_tried() -> list[str]:
    """Hardware and systems that these tests did not run on; they always run ComfyUI on the CPU."""
    here = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}.get(sys.platform, sys.platform)
    systems = [system for system in ("Linux", "Windows", "macOS") if system != here]
    return ["CUDA", "ROCm", "MPS (Apple)", "XPU (Intel)", "DirectML", *systems]
