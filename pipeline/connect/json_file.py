"""The JSON of a connector in, its name and its keys as they stand there out. Raises ConfigError with the place."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.errors import ConfigError

__all__ = ["load", "parse"]


def load(path: Path) -> tuple[str, dict[str, str]]:
    """Read a connector file as it is: its name, which is the file's, and its keys. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", remedy="give the path of a connector file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start}", remedy="save it as UTF-8") from error
    name, config = parse(text, str(path))
    if name not in {"", path.stem}:
        raise ConfigError(
            f"{path}: name: {name!r} is not the file's name {path.stem!r}", remedy="rename the one or the other"
        )
    return path.stem, config


def parse(text: str, where: str) -> tuple[str, dict[str, str]]:
    """Read a connector's JSON: its name, empty where it has none, and its keys. Raises ConfigError."""
    if not text.strip():
        raise ConfigError(f"{where}: is empty", remedy='write {"name": …, "config": {…}}')
    try:
        loaded = json.loads(text, object_pairs_hook=lambda pairs: _unique(where, pairs))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{where}: line {error.lineno}, column {error.colno}: {error.msg}", remedy="correct the JSON"
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{where}: {error}", remedy="correct the JSON") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply", remedy="correct the JSON") from error
    config: object = loaded
    names: list[str] = []
    if isinstance(loaded, dict) and "config" in loaded:
        config = loaded["config"]
        for key in loaded.keys() - {"name", "config"}:
            raise ConfigError(f"{where}: unknown key {key!r} beside name and config", remedy="move it into config")
        names = [_scalar(where, "name", loaded["name"])] if "name" in loaded else []
    if not isinstance(config, dict):
        several = ": it is a list, and one file is one connector" if isinstance(loaded, list) else ""
        raise ConfigError(f"{where}: is not a connector{several}", remedy='write {"name": …, "config": {…}}')
    if "name" in config:
        names.append(_scalar(where, "name", config["name"]))
    if len(set(names)) > 1:
        raise ConfigError(f"{where}: name: {names[0]!r} and, in config, {names[1]!r}", remedy="write it once")
    return names[0] if names else "", {str(key): _scalar(where, str(key), value) for key, value in config.items()}


def _unique(path: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    made: dict[str, object] = {}
    for key, value in pairs:
        if key in made:
            raise ConfigError(f"{path}: {key}: stands there twice", remedy="remove one of the two")
        made[key] = value
    return made


def _scalar(path: str, key: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    kind = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "null"
    raise ConfigError(f"{path}: {key}: is {kind}, not a text", remedy="write its value as a text in quotes")
