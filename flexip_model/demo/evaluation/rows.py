"""Rows of many adapters beside one base, kept in a folder: each is measured once, in groups of subjects.

A file of rows says what was measured (weights and protocol, as a digest); another digest is measured anew. Nothing is
downloaded here, so this runs where there is no network.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...common.device import pick_device
from ...common.errors import FlexIPError
from ...files.safefile import atomic, sha256
from ..scenes.concepts import heldout_instances
from ..scenes.store import Store
from ..scenes.vocabulary import WORDS
from ..stages.export import ADAPTER_FILE
from ..stages.sampling import GUIDANCE
from .evaluate import FINE, KNOB, NOISES, Evaluation
from .evaluate_base import PROMPTS, base_figures, judges_figures
from .shipped import STEPS
from .style import Probe
from .subjects import CONCEPTS

log = logging.getLogger(__name__)

SHIPPED = "shipped"
"""The rows' name of the adapter in the exported folder."""
BASELINES, BASE, JUDGES = "baselines", "base", "judges"
PROTOCOL: dict[str, Any] = {
    "version": 6,
    "knob": KNOB,
    "fine": FINE,
    "steps": STEPS,
    "guidance": GUIDANCE,
    "base_prompts": PROMPTS,
}
_GROUP = {"cpu": 1, "cuda": CONCEPTS}
"""Subjects that are measured, and kept, at once."""


def evaluate_adapters(
    folder: Path,
    store: Path,
    weights: Path,
    out: Path,
    *,
    adapters: Path | None = None,
    names: Collection[str] = (),
    subjects: int = CONCEPTS,
    noises: int = NOISES,
    device: torch.device | None = None,
) -> None:
    """Measure the judges, adapters and, beside the exported one, the base and the baselines, each into a file in `out`,
    with sheets of pictures; what is there already is kept.

    Args:
        folder: what `export` wrote.
        store: the folder of all drawings, as the stage `data` writes it.
        weights: the judge's file.
        adapters: a folder of adapter files, by name KIND-seedN; None is the exported adapter alone.
        names: of the adapters that are wanted, files without suffix or "shipped"; empty is all.
        subjects: how many of the held-out ones.
        noises: from how many noises each prompt is drawn with `adapters`; of the exported one always `NOISES`.
        device: the card where there is one, by default.

    Raises:
        FlexIPError: no such adapter, or a file that is none; fewer subjects in the store.
    """
    files = adapter_files(folder, adapters)
    unknown = [name for name in names if name not in files]
    if unknown:
        raise FlexIPError(f"there is no adapter {', '.join(unknown)}; there are {', '.join(files)}")
    wanted = [name for name in files if not names or name in names]
    measure = Measurement(folder, store, weights, out, device)
    measure.once(JUDGES, lambda: judges_figures(measure.evaluation))
    if SHIPPED in wanted:
        measure.once(BASE, lambda: base_figures(measure.evaluation, out))
        measure.baselines(subjects)
    for name in wanted:
        measure.adapter(name, files[name], subjects, NOISES if name == SHIPPED else noises)


def adapter_files(folder: Path, adapters: Path | None) -> dict[str, Path]:
    """The exported adapter, and those of another folder, by name."""
    found = {SHIPPED: folder / ADAPTER_FILE}
    if not found[SHIPPED].is_file():
        raise FlexIPError(f"{found[SHIPPED]} is missing: run the stage `export` first, or name --out")
    if adapters is not None and not adapters.is_dir():
        raise FlexIPError(f"{adapters} is no folder; expected one of adapter files")
    if adapters is not None:
        found |= {path.stem: path for path in sorted(adapters.glob("*.safetensors"))}
    return found


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every weights file below a folder."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*.safetensors"))}


def digest_of(folder: Path, adapter: Path | None = None, noises: int | None = None) -> str:
    """Says what is measured: the exported parts without their adapter, the protocol, words and held-out instances, an
    adapter, and from how many noises."""
    parts = {name: value for name, value in hashes(folder).items() if name != ADAPTER_FILE}
    chosen = [PROTOCOL, WORDS, sorted(heldout_instances()), parts, None if adapter is None else sha256(adapter), noises]
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:16]


def read_rows(out: Path, name: str, digest: str) -> dict[str, Any] | None:
    """A file of rows, or None where there is none of this digest."""
    path = out / f"{name}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["digest"] == digest else None


def rows_beside(out: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured of all adapters beside the base of `folder`, but for the exported one.

    Raises:
        FlexIPError: they were drawn from different noises, so that they cannot be compared.
    """
    found, base = {}, digest_of(folder)
    for path in sorted(out.glob("*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.get("beside") == base and path.stem != SHIPPED:
            found[path.stem] = value
    counts = {value["noises"] for value in found.values()}
    if len(counts) > 1:
        told = " and ".join(map(str, sorted(counts)))
        raise FlexIPError(f"the adapters in {out} were drawn from {told} noises; measure them from as many each")
    return found


def runs_of(training: Mapping[str, Any]) -> list[dict[str, int]]:
    """Steps and batch of each run that an adapter went through, by what its file tells of its training; empty where it
    tells nothing."""
    steps = training.get("steps", {})
    before, last = (
        training.get("before", steps.get("adapter_before", [])),
        training.get("adapter", steps.get("adapter")),
    )
    return [*before, last] if last else []


def left_out(name: str) -> tuple[str, ...]:
    """What of P an ablation was trained without, by the name of its file (the format has no word for it)."""
    return tuple(part for part in ("cls", "queries") if f"-no_{part}-" in name)


class Measurement:
    """Measures into a folder what is not there yet; the networks are loaded when they are first needed."""

    def __init__(
        self,
        folder: Path,
        store: Path,
        weights: Path,
        out: Path,
        device: torch.device | None = None,
        probe: Probe | None = None,
    ) -> None:
        self.folder, self.store, self.weights, self.out = folder, store, weights, out
        self.device = device or pick_device("auto")
        self.probe = probe
        self.digest = digest_of(folder)
        out.mkdir(parents=True, exist_ok=True)

    @cached_property
    def evaluation(self) -> Evaluation:
        judges = read_rows(self.out, JUDGES, self.digest)
        probe = self.probe or (judges["figures"]["probe"] if judges else None)
        return Evaluation(self.folder, Store.open(self.store), self.weights, self.device, probe)

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """A file of figures without rows."""
        if read_rows(self.out, name, self.digest) is None:
            self._write(name, {"digest": self.digest, "on": self._on(), "figures": make()})
            log.info(f"{name} measured")

    def baselines(self, subjects: int) -> None:
        """What stands beside the exported adapter."""
        digest = digest_of(self.folder, noises=NOISES)
        kept = read_rows(self.out, BASELINES, digest) or {"digest": digest, "on": self._on(), "rows": []}
        while len(kept["rows"]) < subjects:
            self.evaluation.noises = NOISES
            kept["rows"] += self.evaluation.baselines(self._group(len(kept["rows"]), subjects))
            self._write(BASELINES, kept)
            log.info(f"{BASELINES}: {len(kept['rows'])} of {subjects} subjects")

    def adapter(self, name: str, path: Path, subjects: int, noises: int = NOISES) -> None:
        """One adapter's rows.

        Raises:
            FlexIPError: there are rows of it already, drawn from another number of noises.
        """
        digest = digest_of(self.folder, path, noises)
        self._keep_other_noises(name, path, noises)
        kept = read_rows(self.out, name, digest) or {
            "digest": digest,
            "beside": self.digest,
            "noises": noises,
            "rows": [],
        }
        if len(kept["rows"]) >= subjects:
            return
        evaluation = self.evaluation
        evaluation.noises = noises
        info, adapter = evaluation.model.load(path)
        kept |= {"kind": adapter.kind, "training": info.training, "on": self._on()}
        references = evaluation.model.references(evaluation.references, adapter, without=left_out(name))
        while len(kept["rows"]) < subjects:
            begin = len(kept["rows"])
            rows, sheet = evaluation.rows(references, self._group(begin, subjects))
            kept["rows"] += rows
            self._write(name, kept)
            (self.out / "sheets").mkdir(exist_ok=True)
            sheet.save(self.out / "sheets" / f"{name}-{begin:02}.jpg", quality=90)
            log.info(f"{name}: {len(kept['rows'])} of {subjects} subjects, the last {rows[-1]['subject']}")

    def _keep_other_noises(self, name: str, path: Path, noises: int) -> None:
        """Refuse to write over rows of the same adapter and base that another number of noises took hours to make."""
        file = self.out / f"{name}.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        drawn = before.get("noises", noises)
        if drawn != noises and before["digest"] == digest_of(self.folder, path, drawn):
            raise FlexIPError(
                f"{file} has {len(before['rows'])} subjects of {name}, drawn from {drawn} noises, and {noises} were "
                f"asked for; name --noises {drawn} to go on, or another folder by --rows to begin anew"
            )

    def _group(self, begin: int, subjects: int) -> range:
        known = len(self.evaluation.cast.subjects)
        if subjects > known:
            raise FlexIPError(f"{subjects} subjects were asked for; {self.store} has {known}")
        return range(begin, min(begin + _GROUP.get(self.device.type, 1), subjects))

    def _on(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def _write(self, name: str, value: dict[str, Any]) -> None:
        with atomic(self.out / f"{name}.json") as path:
            path.write_text(json.dumps(value), encoding="utf-8")
