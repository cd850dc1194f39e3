"""Any benchmark by its folder, or the small one that ships by its name."""

from __future__ import annotations

from pathlib import Path

from ...common.errors import FlexIPError
from .benchmark import Benchmark, read_plain
from .published import read_dreambench_plus, read_dreambooth

SMALL = "small"
SMALL_FOLDER = Path(__file__).parent / "small"
FORMS = {"plain": read_plain, "dreambench-plus": read_dreambench_plus, "dreambooth": read_dreambooth}


def open_benchmark(where: str | Path, form: str = "auto") -> Benchmark:
    """Read a benchmark.

    Args:
        where: its folder, or `small`: the dozen subjects that ship.
        form: one of `FORMS`; `auto` tells it by the files.

    Raises:
        FlexIPError: no such folder, no known form, or what the form's reader raises.
    """
    folder = SMALL_FOLDER if str(where) == SMALL else Path(where)
    if not folder.is_dir():
        raise FlexIPError(
            f"there is no folder {folder}; give a benchmark's folder, or `{SMALL}` for the one that ships"
        )
    if form == "auto":
        form = _form(folder)
    return FORMS[form](folder)


def _form(folder: Path) -> str:
    if (folder / "subjects.csv").is_file():
        return "plain"
    if (folder / "images").is_dir() and (folder / "captions").is_dir():
        return "dreambench-plus"
    if any((folder / part / "prompts_and_classes.txt").is_file() for part in (".", "dataset")):
        return "dreambooth"
    raise FlexIPError(
        f"{folder} is no benchmark: it has neither subjects.csv, nor images/ and captions/ (DreamBench++), nor "
        "prompts_and_classes.txt (DreamBooth)"
    )
