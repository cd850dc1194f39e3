"""Read a run's config: YAML, with one clear sentence for every way it can be wrong."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ...common.errors import FlexIPError
from .options import ConditioningDropout, References, TrainConfig, TrainStage

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

CONFIGS = Path(__file__).parent
NAMED = ("paper", "one_card", "demo")
SECTIONS: dict[str, Any] = {"stages": TrainStage, "dropout": ConditioningDropout, "references": References}
UNKNOWN = "unexpected_keyword_argument"
PLAIN = {
    "dataclass_type": "it should be `key: value` lines",
    "dict_type": "it should be `key: value` lines",
    "tuple_type": "it should be a list",
}
"""What should stand there, where pydantic's own words (by its name of the mistake) are a programmer's."""


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a config file; `extends: NAME` in it begins from one that ships (paper, one_card, demo) or another file.

    Paths in it are relative to the file's folder. `overrides` (dotted keys) win.

    Raises:
        FlexIPError: no such file, not YAML, an unknown key, a value of the wrong type or out of its range.
    """
    values = _read(Path(path), ())
    for key, value in (overrides or {}).items():
        place = values
        *outer, last = key.split(".")
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise FlexIPError(f"{key} cannot be set: {name} is {place!r}, which has no keys; set {name} as a whole")
        place[last] = value
    return _build(values, str(path))


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The reverse of `to_dict`."""
    return _build(values, "the run's config")


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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FlexIPError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise FlexIPError(f"{path} holds no `key: value` lines")
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
        inside = isinstance(value, str) and not Path(value).is_absolute() and (not ships or value.startswith(".."))
        inside = inside and "://" not in value
        return str((folder / value).resolve()) if inside else value

    for key in ("clip", "dino", "output", "start"):
        if values.get(key) is not None:
            values[key] = at(values[key])
    # A name on a model hub looks like a path too.
    if isinstance(values.get("base"), str) and (folder / values["base"]).exists():
        values["base"] = at(values["base"])
    data = values.get("data")
    if data is not None:
        values["data"] = [at(d) for d in (data if isinstance(data, list) else [data])]


def _build(values: Any, where: str) -> TrainConfig:
    try:
        return TypeAdapter(TrainConfig).validate_python(values)
    except ValidationError as error:
        # A name that is not known first: what lacks may be what it was to be.
        mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != UNKNOWN)
        raise FlexIPError(f"{where}: {_sentence(mistakes[0])}") from error


def _sentence(mistake: ErrorDetails) -> str:
    """What is wrong, and what should stand there."""
    kind, key = mistake["type"], ".".join(map(str, mistake["loc"]))
    if kind == "value_error":  # what the config itself raised
        return str(mistake["ctx"]["error"])
    if kind == UNKNOWN:
        section = SECTIONS.get(str(mistake["loc"][0]), TrainConfig) if len(mistake["loc"]) > 1 else TrainConfig
        return f"unknown key {key}; known are {', '.join(f.name for f in fields(section))}"
    if kind == "missing":
        return f"{key} is missing; give it a value"
    wanted = PLAIN.get(kind, mistake["msg"]).replace("Input should be", "it should be")
    return f"{key or 'the config'} is {mistake['input']!r}; {wanted}"
