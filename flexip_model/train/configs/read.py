"""Read a run's config: YAML, with one clear sentence for every way it can be wrong."""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ...common.errors import FlexIPError
from ...method.config import FlexIPConfig
from .options import TrainConfig

CONFIGS = Path(__file__).parent
NAMED = ("paper", "one_card", "demo")


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
    return _build(TrainConfig, values, str(path))


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The reverse of `to_dict`."""
    config: TrainConfig = _build(TrainConfig, values, "the run's config")
    return config


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
    merged = {**base, **values}
    for key in ("references", "dropout", "adapter"):
        if isinstance(base.get(key), dict) and isinstance(values.get(key), dict):
            merged[key] = {**base[key], **values[key]}
    return merged


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


def _build(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise FlexIPError(f"{where} is {values!r}; expected `key: value` lines")
    types_ = get_type_hints(cls)
    unknown = sorted(set(values) - set(types_))
    if unknown:
        raise FlexIPError(f"{where} has an unknown key {unknown[0]}; known are {', '.join(types_)}")
    missing = [f.name for f in fields(cls) if f.name not in values and _required(f)]
    if missing:
        raise FlexIPError(f"{where} lacks {', '.join(missing)}")
    return cls(**{key: _cast(types_[key], value, f"{where}: {key}") for key, value in values.items()})


def _required(field_: Any) -> bool:
    return field_.default is MISSING and field_.default_factory is MISSING


def _cast(wanted: Any, value: Any, where: str) -> Any:
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        options = get_args(wanted)
        if value is None:
            return None
        return _cast(next(o for o in options if o is not type(None)), value, where)
    if is_dataclass(wanted):
        return _build(wanted, value, where)
    if origin is tuple:
        inner = get_args(wanted)
        items = value if isinstance(value, (list, tuple)) else [value]
        if inner[-1] is not Ellipsis and len(items) != len(inner):
            raise FlexIPError(f"{where} has {len(items)} values; expected {len(inner)}")
        return tuple(_cast(inner[0], item, where) for item in items)
    if origin is dict:
        if not isinstance(value, dict):
            raise FlexIPError(f"{where} is {value!r}; expected `key: value` lines")
        known = get_type_hints(FlexIPConfig)  # the config's only table is the adapter's; it names what it does not know
        return {k: _cast(known[k], v, f"{where}.{k}") if k in known else v for k, v in value.items()}
    if wanted is float and isinstance(value, str):
        # YAML reads 1e-4 as text: its numbers need a point.
        try:
            value = float(value)
        except ValueError:
            raise FlexIPError(f"{where} is {value!r}; expected a number") from None
    good = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}[wanted]
    if not isinstance(value, good) or (wanted is not bool and isinstance(value, bool)):
        names = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
        raise FlexIPError(f"{where} is {value!r}; expected {names[wanted]}")
    return wanted(value)
