"""Weights from local folders alone, named by flags or a config; what is missing is told with its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import FlexIPError
from .definitions import DEFINITIONS, ROLES


class Weights:
    """Where the weights lie.

    Attributes:
        places: role to folder or file, as the user named them.
    """

    def __init__(self, places: Mapping[str, Path]) -> None:
        for role in places:
            if role not in ROLES:
                raise FlexIPError(f"there are no weights {role!r}; known are {', '.join(ROLES)}")
        self.places = dict(places)

    @classmethod
    def read(cls, config: Path | None, flags: Sequence[str]) -> Weights:
        """From a YAML file `weights: {ROLE: PLACE}`, paths from its folder, and from flags `ROLE=PLACE` over it.

        Raises:
            FlexIPError: the file cannot be read or is of another form, a flag without `=`, an unknown role.
        """
        places: dict[str, Path] = {}
        if config is not None:
            places = {role: config.parent / Path(place).expanduser() for role, place in _read(config).items()}
        for flag in flags:
            role, equals, place = flag.partition("=")
            if not equals or not place:
                raise FlexIPError(f"--weights {flag}: expected ROLE=FOLDER, the role one of {', '.join(ROLES)}")
            places[role] = Path(place).expanduser()
        return cls(places)

    def place(self, role: str) -> Path:
        """The folder or file of a role.

        Raises:
            FlexIPError: it is not named or not there; what is wanted, from where, and how to name it.
        """
        known, path = ROLES[role], self.places.get(role)
        if path is None or not path.exists():
            found = "no folder is named" if path is None else f"{path} does not exist"
            raise FlexIPError(
                f"{known.title}: {found}; get {known.files} from {known.source} into a folder of your own and name it "
                f"with --weights {role}=FOLDER (or in the config)"
            )
        return path

    def lacking(self, metric: str) -> list[str]:
        """What a metric lacks, a sentence for each; empty where it can be computed."""
        found = []
        for role in DEFINITIONS[metric].roles:
            try:
                self.place(role)
            except FlexIPError as error:
                found.append(str(error))
        return found


def tell_lacking(lacking: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each thing that metrics lack, beginning with the columns that stay empty for it."""
    columns: dict[str, list[str]] = {}
    for metric, sentences in lacking.items():
        for sentence in sentences:
            columns.setdefault(sentence, []).append(DEFINITIONS[metric].title)
    return [f"{', '.join(titles)} stay{'s' * (len(titles) == 1)} empty. {text}" for text, titles in columns.items()]


def _read(config: Path) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FlexIPError(f"{config} cannot be read ({' '.join(str(error).split())[:200]})") from error
    places = value.get("weights") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise FlexIPError(f"{config} is of another form; expected `weights:` with lines ROLE: FOLDER")
    return places
