"""Settings in, an inbox without its old rows out."""

from __future__ import annotations

from pipeline.config import Settings
from pipeline.postgres import inbox_rows
from pipeline.runtime.database import connect

__all__ = ["prune_inbox"]


def prune_inbox(settings: Settings, *, retention_s: float, batch: int, execute: bool) -> int:
    """Delete (or count) inbox rows that are older; return how many. Raises SourceError."""
    with connect(settings) as conn:
        return inbox_rows.prune(conn, retention_s, batch=batch, execute=execute)
