"""How a DSN says how long a server may take."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict

from pipeline.postgres.liveness import ALIVE, alive


def test_what_a_dsn_says_itself_stays() -> None:
    dsn = "postgresql://ada:s%20e@db:5433/shop?connect_timeout=3&application_name=x"
    assert conninfo_to_dict(alive(dsn, "pipeline-relay", tcp_user_timeout=10_000)) == {
        **{name: str(value) for name, value in ALIVE.items()},
        "user": "ada",
        "password": "s e",
        "host": "db",
        "port": "5433",
        "dbname": "shop",
        "connect_timeout": "3",
        "application_name": "pipeline-relay",
        "tcp_user_timeout": "10000",
    }
