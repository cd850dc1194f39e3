"""Read a run's config: YAML, with one clear sentence for every way it can be wrong."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ...common.errors import FlexIPError, Mistakes
from .options import TrainConfig
from .sections import Buckets, ConditioningDropout, Dial, References, TrainStage, ValidationLoss

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

CONFIGS = Path(__file__).parent
NAMED = ("paper", "one_card", "fine_tune", "demo")
SECTIONS: dict[str, Any] = {
    "stages": TrainStage,
    "dropout": ConditioningDropout,
    "references": References,
    "validation": ValidationLoss,
    "dial": Dial,
    "buckets": Buckets,
}
UNKNOWN = "unexpected_keyword_argument"
PLAIN = {
    "dataclass_type": "it should be `key: value` lines",
    "dict_type": "it should be `key: value` lines",
    "tuple_type": "it should be a list",
}
"""What should stand there, where pydantic's own words (by its name of the mistake) are a programmer's."""


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a config file; `extends: NAME` in it begins from one that ships (`NAMED`) or from another file.

    Paths in it are relative to the file's folder. `overrides` (dotted keys) win; theirs are relative to the working
    folder, as all that is typed.

    Raises:
        FlexIPError: no such file, not YAML, an unknown key, a value of the wrong type or out of its range.
    """
    changes = dict(overrides or {})
    _resolve(changes, Path.cwd())
    return _build(change(_read(Path(path), ()), changes), str(path))


def change(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A config's values with others in their places.

    Args:
        overrides: by dotted key.

    Raises:
        FlexIPError: a key leads into what has no keys.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(values))
    for key, value in overrides.items():
        place = changed
        *outer, last = key.split(".")
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise FlexIPError(f"{key} cannot be set: {name} is {place!r}, which has no keys; set {name} as a whole")
        place[last] = value
    return changed


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The reverse of `to_dict`, also for a run that was trained when a warm-up could be longer than all of it."""
    steps = sum(stage["steps"] for stage in values["stages"])
    return _build({**values, "warmup": min(values["warmup"], steps)}, "the run's config")


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    import yaml

    if not path.is_file() and path.name in NAMED:
        path = CONFIGS / f"{path.name}.yaml"
    if not path.is_file():
        raise FlexIPError(f"there is no config {path}; give a YAML file, or one of {', '.join(NAMED)}")
    if path.resolve() in seen:
        raise FlexIPError(f"{path} extends itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlexIPError(f"the config {path} cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FlexIPError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise FlexIPError(f"{path} holds no `key: value` lines")
    values = _named(values)
    base: dict[str, Any] = {}
    if "extends" in values:
        parent = str(values.pop("extends"))
        base = _read(Path(parent) if parent in NAMED else path.parent / parent, (*seen, path.resolve()))
    _resolve(values, path.parent)
    for key, section in values.items():
        if isinstance(section, dict) and isinstance(base.get(key), dict):
            values[key] = {**base[key], **section}
    return {**base, **values}


def _resolve(values: dict[str, Any], folder: Path) -> None:
    """Make relative paths relative to the config's folder; in a config that ships, only those into the pack."""
    ships = folder.resolve() == CONFIGS.resolve()

    def at(value: Any) -> Any:
        if not isinstance(value, str) or not value or "://" in value or Path(value).is_absolute():
            return value
        return str((folder / value).resolve()) if not ships or value.startswith("..") else value

    for key in ("clip", "dino", "output", "start", "base_configs", "vae"):
        if values.get(key) is not None:
            values[key] = at(values[key])
    # A name on a model hub looks like a path too.
    if isinstance(values.get("base"), str) and values["base"] and (folder / values["base"]).exists():
        values["base"] = at(values["base"])
    data = values.get("data")
    if data is not None:
        values["data"] = [at(d) for d in (data if isinstance(data, list) else [data])]


def _build(values: Any, where: str) -> TrainConfig:
    try:
        return TypeAdapter(TrainConfig).validate_python(values)
    except ValidationError as error:
        found = Mistakes()
        # A name that is not known first: what lacks may be what it was to be.
        for mistake in sorted(error.errors(), key=lambda mistake: mistake["type"] != UNKNOWN):
            for sentence in _sentences(mistake):
                found.add(f"{where}: {sentence}")
        found.tell("{count} mistakes:")
        raise


def _sentences(mistake: ErrorDetails) -> Sequence[str]:
    """What is wrong, and what should stand there; several for what the config itself raised."""
    error = mistake.get("ctx", {}).get("error")
    return error.sentences if isinstance(error, FlexIPError) else (_sentence(mistake),)


def _sentence(mistake: ErrorDetails) -> str:
    kind, key = mistake["type"], ".".join(map(str, mistake["loc"]))
    if kind == UNKNOWN:
        section = SECTIONS.get(str(mistake["loc"][0]), TrainConfig) if len(mistake["loc"]) > 1 else TrainConfig
        return f"unknown key {key}; known are {', '.join(f.name for f in fields(section))}"
    if kind == "missing":
        return f"{key} is missing; give it a value"
    wanted = PLAIN.get(kind, mistake["msg"]).replace("Input should be", "it should be")
    return f"{key or 'the config'} is {_shown(mistake['input'])}; {wanted}"


def _named(value: Any) -> Any:
    """The same with text for keys: YAML reads `1:` and `yes:` as others."""
    if isinstance(value, dict):
        return {str(key): _named(held) for key, held in value.items()}
    return [_named(held) for held in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    """A value as it stands in YAML, not as Python holds it."""
    if value is None:
        return "empty"
    return str(value) if isinstance(value, date) else repr(value)
