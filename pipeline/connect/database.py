"""The ``database.…`` keys of a connector file in, libpq's parameters out."""

from __future__ import annotations

import re
from collections.abc import Callable

from pipeline.errors import ConfigError

__all__ = ["PARAMETERS", "database", "statements"]

PARAMETERS = {
    "database.hostname": "host",
    "database.port": "port",
    "database.user": "user",
    "database.password": "password",
    "database.dbname": "dbname",
    "database.sslmode": "sslmode",
    "database.sslcert": "sslcert",
    "database.sslkey": "sslkey",
    "database.sslpassword": "sslpassword",
    "database.sslrootcert": "sslrootcert",
}
"""Key → libpq's parameter."""


def database(where: str, get: Callable[[str], str], notice: Callable[[str], None]) -> dict[str, str]:
    """Return how to connect. Of several hosts the primary is taken, which ``notice`` hears. Raises ConfigError."""
    hosts, ports = get("database.hostname").split(","), get("database.port").split(",")
    for port in ports:
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise ConfigError(f"{where}: database.port: {port!r} is not a port", remedy="use 1–65535")
    if len(ports) not in {1, len(hosts)}:
        raise ConfigError(
            f"{where}: database.port: {len(ports)} ports for {len(hosts)} hosts",
            remedy="give one port for all hosts of database.hostname, or one for each",
        )
    found = {parameter: get(key) for key, parameter in PARAMETERS.items() if get(key)}
    if len(hosts) > 1:
        notice("database.hostname is a list: the primary among them is read; Debezium takes one only")
        found["target_session_attrs"] = "primary"
    return found


def statements(text: str) -> tuple[str, ...]:
    """Part ``database.initial.statements`` at each semicolon; two of them are one that is meant."""
    parts = (part.replace("\0", ";").strip() for part in text.replace(";;", "\0").split(";"))
    return tuple(part for part in parts if part)
