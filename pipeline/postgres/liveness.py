"""A DSN in, the same with how long a server may take to let us in out, and how soon one that is gone is noticed.

In half a minute, where the system takes an hour. The one place for that: who connects goes through here. What the
DSN says of that itself stays; its application name is ours.
"""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["ALIVE", "CONNECT_S", "alive"]

CONNECT_S = 10
"""For each address that the host's name has. A role that is told to stop waits no longer for a server."""

ALIVE: dict[str, int] = {
    "connect_timeout": CONNECT_S,
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Parameters for libpq. A statement may take its time while the server's machine answers."""


def alive(dsn: str, name: str, **parameters: str | int) -> str:
    """Return the DSN with ALIVE, this application name, and ``parameters``, which win over what it says."""
    given = conninfo_to_dict(dsn)
    defaults = {key: value for key, value in ALIVE.items() if key not in given}
    return make_conninfo(dsn, **{**defaults, "application_name": name, **parameters})
