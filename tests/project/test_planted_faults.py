"""For each of the first 22 promises: a planted fault, and a test that notices it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..support.paths import ROOT, TESTS
from ..support.planted_faults import FAULTS
from ..support.reliability import Figures

# A refusal that does not come is a failure of its own kind in pytest.
NOTICED = ("AssertionError", "Failed")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every planted test in one child process, each once more without its fault."""
    files = [
        file
        for file in sorted(TESTS.rglob("test_*.py"))
        if any(f"def {fault.test}(" in file.read_text(encoding="utf-8") for fault in FAULTS.values())
    ]
    results = tmp_path_factory.mktemp("planted") / "results.json"
    pytest_command = Path(sys.executable).with_name("pytest.exe" if os.name == "nt" else "pytest")
    command = [
        str(pytest_command),
        *map(str, files),
        "-q",
        "-p",
        "no:cacheprovider",
        "--plant=all",
        f"--plant-results={results}",
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert results.is_file(), done.stdout[-4000:] + done.stderr[-2000:]
    return json.loads(results.read_text(encoding="utf-8"))


def test_there_is_a_fault_for_each_of_the_first_22_promises() -> None:
    assert sorted(FAULTS) == list(range(1, 23))


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.promise(row), id=f"{row}: {fault.what}") for row, fault in FAULTS.items()],
)
def test_the_fault_is_noticed(outcomes: list[dict[str, Any]], row: int, figures: Figures) -> None:
    mine = [outcome for outcome in outcomes if outcome["row"] == row]
    assert mine and all(row in outcome["promises"] for outcome in mine), "a test of this promise has to notice it"
    assert any(outcome["when"] == "call" and outcome["error"] in NOTICED for outcome in mine), mine
    clean = [outcome for outcome in outcomes if outcome["row"] is None and outcome["test"] == FAULTS[row].test]
    assert clean and all(outcome["error"] == "" for outcome in clean), clean
    figures.cases(row, 1, 1, f"planted fault noticed ({FAULTS[row].what})")
