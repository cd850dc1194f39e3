"""`evaluate study-result`: evaluators' files to Table 1's two columns, the share of choices of each method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import FlexIPError
from ..statistics import interval
from .kit import QUESTIONS

Shares = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class StudyResult:
    """What a study came to.

    Attributes:
        shares: method to question to the mean share of choices in percent, and its 95 % interval by bootstrap over
            evaluators; the shares of a question add up to 100.
        evaluators: how many files count.
        problems: a sentence for each file that does not.
    """

    shares: Shares
    evaluators: int
    problems: tuple[str, ...]


def read_result(key: Path, files: Sequence[Path]) -> StudyResult:
    """Count the choices; each evaluator weighs the same. A file that is damaged, of another study, incomplete, or of an
    evaluator who sent one already is named and not counted.

    Raises:
        FlexIPError: the key cannot be read, no file counts.
    """
    try:
        known = json.loads(key.read_text(encoding="utf-8"))
        owners, methods, count = known["owners"], known["methods"], len(known["samples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlexIPError(f"{key} is no key of a study ({error}); it lies beside study.html") from error
    problems, evaluators = [], {}
    for path in files:
        try:
            answers = _answers(path, known["study"], owners, count)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{path}: {error}; it is not counted")
            continue
        name, choices = answers
        if name in evaluators:
            problems.append(f"{path}: evaluator {name} has sent a file already; it is not counted")
            continue
        evaluators[name] = choices
    if not evaluators:
        raise FlexIPError("no file counts: " + "; ".join(problems or ["none was given"]))
    shares: Shares = {method: {} for method in methods}
    for question in QUESTIONS:
        for method in methods:
            own = [100 * choices[question].count(method) / count for choices in evaluators.values()]
            shares[method][question] = interval(own)
    return StudyResult(shares, len(evaluators), tuple(problems))


def _answers(path: Path, study: str, owners: dict[str, str], count: int) -> tuple[str, dict[str, list[str]]]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if value["study"] != study:
        raise ValueError("it belongs to another study")
    chosen: dict[tuple[str, int], str] = {}
    for answer in value["answers"]:
        code = str(answer["choice"])
        if code not in owners or int(code.split("-")[0]) != int(answer["sample"]):
            raise ValueError(f"it chooses {code!r}, which is no picture of sample {answer['sample']}")
        chosen[str(answer["question"]), int(answer["sample"])] = owners[code]
    lacking = [f"{question} of {n}" for question in QUESTIONS for n in range(count) if (question, n) not in chosen]
    if lacking:
        raise ValueError(f"{len(lacking)} answers are missing, first {lacking[0]}")
    return str(value["evaluator"]), {q: [chosen[q, n] for n in range(count)] for q in QUESTIONS}
