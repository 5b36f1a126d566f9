"""A primary in, what a standby that is promoted would lack, out."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.finding import Finding
from pipeline.postgres.diagnosis.look import Look, judged

__all__ = ["examine"]

_SINCE = 170000
_CHECK = "failover"


def examine(look: Look) -> Iterator[Finding]:
    """Yield findings about failover slots, and about standbys that logical decoding waits for."""
    standbys = [str(row["slot_name"]) for row in look.rows(_PHYSICAL)]
    if look.version < _SINCE:
        if standbys:
            fix = "upgrade to PostgreSQL 17, or use the extension pg_failover_slots"
            yield judged(_CHECK, "warning", "a standby that is promoted has no slot", fix)
        return
    name = look.capture.slot
    slot = look.row("SELECT failover FROM pg_replication_slots WHERE slot_name = %s", name)
    listed = [one.strip() for one in look.setting("synchronized_standby_slots").split(",") if one.strip()]
    yield from _waited_for(look, listed)
    if slot is not None and not slot["failover"] and (standbys or look.capture.failover):
        yield judged(
            _CHECK,
            "warning",
            f"slot {name} is no failover slot: a standby that is promoted has no copy of it",
            f"stop its reader; then, with psql 'replication=database': ALTER_REPLICATION_SLOT {name} (FAILOVER true);",
        )
    elif slot is not None and slot["failover"] and standbys and not listed:
        yield judged(
            _CHECK,
            "warning",
            "rows are published that a standby may not have when it is promoted",
            look.provider.set("synchronized_standby_slots", ", ".join(standbys)),
        )
    elif slot is not None and slot["failover"]:
        yield judged(_CHECK, "ok", f"slot {name} is a failover slot")


def _waited_for(look: Look, listed: list[str]) -> Iterator[Finding]:
    """A standby that is listed and does not follow stops every reader of a failover slot."""
    for one in listed:
        row = look.row("SELECT active FROM pg_replication_slots WHERE slot_name = %s AND slot_type = 'physical'", one)
        if row is None or not row["active"]:
            what = "has no physical slot" if row is None else "does not follow"
            left = ", ".join(other for other in listed if other != one)
            yield judged(
                "synchronized_standby_slots",
                "problem",
                f"{one} {what}: failover slots are not read until it does",
                look.provider.set("synchronized_standby_slots", left),
            )


_PHYSICAL = "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary ORDER BY 1"
