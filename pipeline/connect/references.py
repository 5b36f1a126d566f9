"""Text with ``${env:NAME}``, ``${file:path:key}`` or ``${directory:path:name}`` in, with values in their place out.

As Kafka's EnvVar-, File- and DirectoryConfigProvider do it, but a missing value is an error, not an empty text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import ConfigError

__all__ = ["properties", "resolve"]

_REFERENCE = re.compile(r"\$\{([A-Za-z]\w*):([^}]*)\}")
_KEY = re.compile(r"((?:\\.|[^\\\s:=])*)\s*[:=]?\s*(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def resolve(text: str, where: str, env: Mapping[str, str]) -> str:
    """Replace all references in ``text``; ``where`` names file and key for messages. Raises ConfigError."""
    return _REFERENCE.sub(lambda found: _value(found[1], found[2], where, env), text)


def _value(provider: str, rest: str, where: str, env: Mapping[str, str]) -> str:
    if provider == "env":
        if rest not in env:
            raise ConfigError(f"{where}: environment variable {rest} is not set", remedy=f"set {rest}")
        return env[rest]
    if provider not in {"file", "directory"}:
        raise ConfigError(
            f"{where}: unknown provider {provider!r} in ${{{provider}:…}}",
            remedy="use ${env:NAME}, ${file:/path:key} or ${directory:/path:name}",
        )
    path, colon, key = rest.rpartition(":")
    if not colon:
        raise ConfigError(f"{where}: ${{{provider}:{rest}}} names no key", remedy=f"write ${{{provider}:/path:key}}")
    if provider == "directory":
        if Path(key).name != key:
            raise ConfigError(f"{where}: {key!r} is not the name of a file in {path}", remedy="name one file of it")
        return _text(Path(path, key), where)
    for name, value in properties(_text(Path(path), where)):
        if name == key:
            return value
    raise ConfigError(f"{where}: file {path} has no key {key!r}", remedy=f"add a line {key}=…")


def _text(path: Path, where: str) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise ConfigError(f"{where}: file {path}: {reason}", remedy="correct the path, or the file's rights") from error


def properties(text: str) -> Iterator[tuple[str, str]]:
    """Read Java's properties: the newest of a key first."""
    pairs = []
    lines = iter(re.split(r"\r\n|\r|\n", text))
    for line in lines:
        whole = line.lstrip()
        if not whole or whole[0] in "#!":
            continue
        while (len(whole) - len(whole.rstrip("\\"))) % 2:  # an odd number of them: it goes on in the next line
            whole = whole[:-1] + next(lines, "").lstrip()
        if found := _KEY.fullmatch(whole):
            pairs.append((_plain(found[1]), _plain(found[2])))
    return reversed(pairs)


def _plain(text: str) -> str:
    def value(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) if found[1] else _CONTROLS.get(found[2], found[2])

    return _ESCAPE.sub(value, text)
