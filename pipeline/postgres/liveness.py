"""How a connection that is kept finds out that its server is gone: in half a minute, where the system takes an hour."""

from __future__ import annotations

from typing import Any

__all__ = ["ALIVE"]

ALIVE: dict[str, Any] = {  # among psycopg's own arguments, of all types
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Parameters for libpq. A statement may take its time while the server's machine answers."""
