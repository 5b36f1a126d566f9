"""A DSN in, Django's connection to it out: its settings can be made once in a process, and are changed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django
from psycopg import conninfo


@contextmanager
def django_connection(dsn: str) -> Iterator[Any]:
    """Django's own ``connection``, at a database for as long as the block lasts."""
    from django.conf import settings
    from django.db import connections

    parts = conninfo.conninfo_to_dict(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts["dbname"], "USER": parts["user"], "PASSWORD": parts.get("password", ""),
        "HOST": parts["host"], "PORT": parts["port"],
    }  # fmt: skip
    if not settings.configured:
        settings.configure(DATABASES={"default": database}, USE_TZ=True)
        django.setup()
    connections["default"].close()
    connections["default"].settings_dict.update(database)
    from django.db import connection

    try:
        yield connection
    finally:
        connections["default"].close()
