"""A table that is polled in, who polls it and from where on, out."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import SourceError
from pipeline.finding import Finding
from pipeline.postgres import poll_position
from pipeline.postgres.diagnosis.look import Look, judged

__all__ = ["examine"]


def examine(look: Look) -> Iterator[Finding]:
    """Yield findings about the position of polling, and about a slot that has to be taken over first."""
    slot = look.capture.slot
    check = f"position of {slot}"
    if not look.reads("pipeline.poll_position"):
        return  # grants say it
    row = look.row(_POLLED, slot)
    if row is not None:
        try:
            poll_position.load(look.conn, slot)
        except SourceError as error:
            yield judged(check, "problem", error.what, error.remedy)
            return
        fix = "pipeline connector run FILE"
        if row["active"]:
            yield judged(check, "ok", "a relay polls")
        else:
            yield judged(check, "warning", f"nobody polls since {row['since_s']:.0f} s or longer", fix)
        return
    if look.row(_SLOT, slot) is not None:
        yield judged(f"slot {slot}", "note", "is there: the relay that polls takes it over, and drops it")
    else:
        yield judged(check, "note", "nobody polled yet: the first relay begins at what commits from then on")


_POLLED = f"""
SELECT {poll_position.ACTIVE} AS active, extract(epoch FROM clock_timestamp() - updated_at)::float8 AS since_s
FROM pipeline.poll_position WHERE slot = %s
"""  # noqa: S608 — of constants
_SLOT = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND database = current_database()"
