"""Text with ``${env:NAME}`` and ``${file:path:key}`` in, the same with values in their place out.

As Kafka's EnvVarConfigProvider and FileConfigProvider do it, but a missing value is an error, not an empty text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import ConfigError

__all__ = ["resolve"]

_REFERENCE = re.compile(r"\$\{([A-Za-z]\w*):([^}]*)\}")


def resolve(text: str, where: str, env: Mapping[str, str]) -> str:
    """Replace all references in ``text``; ``where`` names file and key for messages. Raises ConfigError."""
    return _REFERENCE.sub(lambda found: _value(found[1], found[2], where, env), text)


def _value(provider: str, rest: str, where: str, env: Mapping[str, str]) -> str:
    if provider == "env":
        if rest not in env:
            raise ConfigError(f"{where}: environment variable {rest} is not set", remedy=f"set {rest}")
        return env[rest]
    if provider == "file":
        path, colon, key = rest.rpartition(":")
        if not colon:
            raise ConfigError(f"{where}: ${{file:{rest}}} names no key", remedy="write ${file:/path:key}")
        return _property(Path(path), key, where)
    raise ConfigError(
        f"{where}: unknown provider {provider!r} in ${{{provider}:…}}", remedy="use ${env:NAME} or ${file:/path:key}"
    )


def _property(path: Path, key: str, where: str) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise ConfigError(f"{where}: file {path}: {reason}", remedy="correct the path, or the file's rights") from error
    for line in lines:
        name, _, value = line.strip().partition("=")
        if name.rstrip() == key and not name.startswith(("#", "!")):
            return value.strip()
    raise ConfigError(f"{where}: file {path} has no key {key!r}", remedy=f"add a line {key}=…")
