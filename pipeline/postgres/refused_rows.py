"""Records that no topic takes in, rows of ``pipeline.refused_row`` out.

Byte for byte, once for each connector, event and value, and committed before the letter that tells of it is sent.
"""

from __future__ import annotations

import json
from base64 import b64encode

import psycopg

from pipeline.capture import Routed
from pipeline.errors import SourceError
from pipeline.headers import stored_id
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive

__all__ = ["RefusedRows"]

_ANSWER_MS = 10_000  # the server's questions to the relay wait meanwhile

_KEEP = """
INSERT INTO pipeline.refused_row (connector, event_id, topic, key, value, headers, at_ms)
VALUES (%s, %s, %s, %b, %b, %s, %s) ON CONFLICT DO NOTHING
"""


class RefusedRows:
    """The table, as one connector writes to it. Connects for each row: they are few."""

    def __init__(self, dsn: str, connector: str) -> None:
        self._dsn = alive(dsn, "pipeline-relay", tcp_user_timeout=_ANSWER_MS)
        self._connector = connector

    def keep(self, record: Routed, topic: str) -> None:
        """Store a record that was meant for ``topic``. Raises SourceError, always retryable: it must not be lost."""
        _, key, value, headers, at_ms, _ = record
        named = [(name, text.encode() if isinstance(text, str) else text) for name, text in headers]
        event_id = (dict(named).get("id") or b"").decode(errors="replace")
        written = json.dumps([(name, None if raw is None else b64encode(raw).decode()) for name, raw in named])
        try:
            with psycopg.connect(self._dsn, autocommit=True) as conn:
                conn.execute(f"SET statement_timeout = {_ANSWER_MS}".encode())
                conn.execute(_KEEP, (self._connector, stored_id(event_id), topic, key, value, written, at_ms))
        except psycopg.Error as error:
            found = translated(error)
            raise SourceError(
                f"a row that no topic takes is not kept yet: {found.what}", remedy=found.remedy, retryable=True
            ) from error
