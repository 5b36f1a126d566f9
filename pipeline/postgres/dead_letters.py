"""Letters in, their states out: the table ``pipeline.dead_letter``.

Pages go by key, oldest or newest first, and cost the same at any depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg

from pipeline.deadletter import Count, Place, Selection, State, Summary
from pipeline.postgres.errors import translated

__all__ = ["DeadLetterTable"]


class DeadLetterTable:
    """The table. ``conn`` is in autocommit mode. Every call raises SourceError."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn

    def next_offset(self, topic: str, partition: int) -> int:
        """Return the offset after the last one entered; 0 where there is none."""
        rows = self._rows(
            'SELECT coalesce(max("offset") + 1, 0) FROM pipeline.dead_letter '
            "WHERE topic = %(topic)s AND partition = %(partition)s",
            {"topic": topic, "partition": partition},
        )
        return int(rows[0][0])

    def enter(self, letters: Sequence[Summary]) -> None:
        """Enter letters as open, all or none; one that is there already stays as it is."""
        rows = [(*one.place, one.event_id, one.type, one.fingerprint, one.error, one.died_at) for one in letters]
        try:
            with self._conn.transaction(), self._conn.cursor() as cursor:
                cursor.executemany(_ENTER, rows)
        except psycopg.Error as error:
            raise translated(error) from error

    def forget(self, topic: str, partition: int) -> int:
        """Remove the letters of a partition and return how many there were."""
        try:
            done = self._conn.execute(
                "DELETE FROM pipeline.dead_letter WHERE topic = %s AND partition = %s", (topic, partition)
            )
        except psycopg.Error as error:
            raise translated(error) from error
        return done.rowcount

    def page(self, selection: Selection, after: Place | None, limit: int) -> list[Summary]:
        """Return letters, the newest of a partition first, from after ``after``."""
        rows = self._rows(
            _COLUMNS + _where(selection, after, newest_first=True) + _NEWEST_FIRST, _values(selection, after, limit)
        )
        return [
            Summary(Place(topic, partition, offset), event_id, kind, error, fingerprint, died_at, state)
            for topic, partition, offset, event_id, kind, error, fingerprint, died_at, state in rows
        ]

    def counts(self, selection: Selection) -> list[Count]:
        """Return how many letters died of what, the most first. Reads all that are selected."""
        rows = self._rows(_COUNTS + _where(selection, None) + _BY_CAUSE, _values(selection, None, 0))
        return [Count(*row) for row in rows]

    @contextmanager
    def claim(self, selection: Selection, after: Place | None, limit: int) -> Iterator[list[Place]]:
        """Give letters, the oldest of a partition first, that nobody else gets until the claim ends."""
        sql = _PLACES + _where(selection, after) + _OLDEST_FIRST
        try:
            with self._conn.transaction():
                rows = self._conn.execute(sql, _values(selection, after, limit)).fetchall()
                yield [Place(*row) for row in rows]
        except psycopg.Error as error:
            raise translated(error) from error

    def mark(self, places: Sequence[Place], state: State) -> None:
        """Keep their new state."""
        columns = [list(column) for column in zip(*places, strict=True)] or [[], [], []]
        try:
            self._conn.execute(_MARK, (state, *columns))
        except psycopg.Error as error:
            raise translated(error) from error

    def _rows(self, sql: LiteralString, values: dict[str, object]) -> list[tuple[Any, ...]]:
        try:
            return self._conn.execute(sql, values).fetchall()
        except psycopg.Error as error:
            raise translated(error) from error


def _where(selection: Selection, after: Place | None, *, newest_first: bool = False) -> LiteralString:
    """Return the conditions that are needed; few of them, so that an index can serve the rest."""
    parts: list[LiteralString] = ["topic = ANY(%(topics)s)"]
    # written out, so that the partial index is used
    parts.append("state = 'open'" if selection.states == ("open",) else "state = ANY(%(states)s)")
    if selection.places:
        parts.append(
            '(topic, partition, "offset") IN (SELECT * FROM unnest(%(p1)s::text[], %(p2)s::int[], %(p3)s::bigint[]))'
        )
    if selection.event_ids:
        parts.append("event_id = ANY(%(event_ids)s)")
    if selection.type is not None:
        parts.append("type = %(type)s")
    if selection.error is not None:
        parts.append(
            "(error = %(error)s OR fingerprint = %(error)s"
            " OR right(error, length(%(error)s::text) + 1) = '.' || %(error)s::text)"
        )
    if selection.since is not None:
        parts.append("died_at >= %(since)s")
    if selection.until is not None:
        parts.append("died_at < %(until)s")
    if after is not None:
        sign: LiteralString = "<" if newest_first else ">"
        parts.append(f'(topic, partition, "offset") {sign} (%(a1)s, %(a2)s, %(a3)s)')
    return " WHERE " + " AND ".join(parts)


def _values(selection: Selection, after: Place | None, limit: int) -> dict[str, object]:
    places = [list(column) for column in zip(*selection.places, strict=True)] or [[], [], []]
    values: dict[str, object] = {
        "topics": list(selection.topics),
        "states": list(selection.states),
        "event_ids": list(selection.event_ids),
        "type": selection.type,
        "error": selection.error,
        "since": selection.since,
        "until": selection.until,
        "limit": limit,
    }
    values.update(zip(("p1", "p2", "p3"), places, strict=True))
    values.update(zip(("a1", "a2", "a3"), after or (None, None, None), strict=True))
    return values


_ENTER = """
INSERT INTO pipeline.dead_letter (topic, partition, "offset", event_id, type, fingerprint, error, died_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (topic, partition, "offset") DO NOTHING
"""

_COLUMNS: LiteralString = """
SELECT topic, partition, "offset", event_id, type, error, fingerprint, died_at, state FROM pipeline.dead_letter"""

_PLACES: LiteralString = 'SELECT topic, partition, "offset" FROM pipeline.dead_letter'
_COUNTS: LiteralString = "SELECT topic, type, error, fingerprint, count(*) FROM pipeline.dead_letter"
_BY_CAUSE: LiteralString = " GROUP BY topic, type, error, fingerprint ORDER BY count(*) DESC, topic, type, fingerprint"
_NEWEST_FIRST: LiteralString = ' ORDER BY topic DESC, partition DESC, "offset" DESC LIMIT %(limit)s'
_OLDEST_FIRST: LiteralString = ' ORDER BY topic, partition, "offset" LIMIT %(limit)s FOR UPDATE SKIP LOCKED'

_MARK = """
UPDATE pipeline.dead_letter AS letter SET state = %s, changed_at = now()
FROM unnest(%s::text[], %s::int[], %s::bigint[]) AS wanted (topic, partition, "offset")
WHERE (letter.topic, letter.partition, letter."offset") = (wanted.topic, wanted.partition, wanted."offset")
"""
