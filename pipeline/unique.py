"""Jobs that want to be the only ones of their kind in, the statements that take their keys out.

In the transaction that stores the jobs: who comes second waits for its end, and then finds the key held.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

from pipeline.errors import ConfigError, JobError
from pipeline.event import Job
from pipeline.outbox import Statement, Steps
from pipeline.terms import is_number

__all__ = ["LONGEST_S", "Claim", "Unique", "claim"]

LONGEST_S = 100 * 366 * 86_400
"""How long anything of a job may last, or be put off."""

_KEY_CHARS = 500


@dataclass(frozen=True, slots=True)
class Unique:
    """At most one job of a type and key.

    The key is ``key``, or the fields named by ``by``, or else all arguments. It is held while the job is unfinished,
    or for ``period_s`` seconds from the enqueue, whatever becomes of the job. When it is taken: ``keep`` returns the id
    of the job that holds it, ``reject`` raises JobError, ``replace`` asks for the end of that job, also where it runs,
    and puts the new one in its place.
    """

    key: str | None = None
    by: tuple[str, ...] = ()
    period_s: float | None = None
    on_conflict: Literal["keep", "replace", "reject"] = "keep"

    def __post_init__(self) -> None:
        if not isinstance(self.by, tuple | list):
            raise ConfigError(f"Unique: by={self.by!r}: no tuple", remedy=f"by=({self.by!r},)")
        if self.key is not None and (not isinstance(self.key, str) or self.by or not 0 < len(self.key) <= _KEY_CHARS):
            raise ConfigError(
                "Unique: key must have 1 to 500 characters, and goes without by=", remedy='Unique(key="order-7")'
            )
        if self.period_s is not None and not (is_number(self.period_s) and 0 < self.period_s <= LONGEST_S):
            raise ConfigError(
                f"Unique: period_s={self.period_s!r}", remedy="seconds, more than 0; None: while unfinished"
            )
        if self.on_conflict not in {"keep", "replace", "reject"}:
            raise ConfigError(f"Unique: on_conflict={self.on_conflict!r}", remedy="keep, replace or reject")

    def key_of(self, job: Job, queue: str) -> str:
        """Return the key as it is stored: no argument can be read from it."""
        missing = [name for name in self.by if name not in type(job).model_fields]
        if missing:
            raise ConfigError(
                f"Unique: {job.message_type.name} has no field {missing[0]!r}",
                remedy=f"one of: {', '.join(type(job).model_fields)}",
            )
        chosen = self.key if self.key is not None else job.model_dump_json(include=set(self.by) if self.by else None)
        text = json.dumps([queue, job.message_type.name, self.key is not None, chosen])
        return hashlib.sha256(text.encode()).hexdigest()


class Claim(NamedTuple):
    """What a job to be stored wants: ``key``, as ``Unique.key_of`` makes it, by the rule of ``unique``."""

    key: str
    job_id: UUID
    type_name: str
    unique: Unique


def claim(claims: Sequence[Claim]) -> Steps[dict[UUID, UUID]]:
    """Take unique keys; return the id of each job → that of the job that holds its key now.

    Raises JobError where a key is taken and its rule is to reject: then none is.
    """
    if not claims:
        return {}
    first = _first_of_each_key(claims)
    if replacing := [key for key, one in first.items() if one.unique.on_conflict == "replace"]:
        for lock in (_LOCK_DUE, _LOCK_HOLDERS):
            yield Statement(lock, [(json.dumps(replacing),)], returns=True)
    wanted = [{"key": one.key, "id": str(one.job_id), "period_s": one.unique.period_s} for one in first.values()]
    got = {row[0] for row in (yield Statement(_CLAIM, [(json.dumps(wanted),)], returns=True))}
    taken = [key for key in first if key not in got]
    holders = {key: one.job_id for key, one in first.items()}
    if taken:
        found = yield Statement(_HOLDERS, [(json.dumps(taken),)], returns=True)
        holding = {str(key): UUID(str(job_id)) for key, job_id in found}
        refused = [key for key in taken if first[key].unique.on_conflict == "reject"]
        if refused:
            yield Statement(_UNCLAIM, [(json.dumps(wanted),)])
            raise _rejected(first[refused[0]], holding[refused[0]])
        replaced = [key for key in taken if first[key].unique.on_conflict == "replace"]
        if replaced:
            yield Statement(_REPLACE, [(json.dumps([w for w in wanted if w["key"] in replaced]),)])
            yield Statement(_CANCEL, [(json.dumps([str(holding[k]) for k in replaced]),)], returns=True)
        holders |= {key: holding[key] for key in taken if key not in replaced}
    return {one.job_id: holders[one.key] for one in claims}


def _first_of_each_key(claims: Iterable[Claim]) -> dict[str, Claim]:
    """Let the jobs of one call agree among themselves; the last one replaces, the first one is kept."""
    first: dict[str, Claim] = {}
    for one in claims:
        if one.key in first and one.unique.on_conflict == "reject":
            raise _rejected(one, first[one.key].job_id)
        if one.key not in first or one.unique.on_conflict == "replace":
            first[one.key] = one
    return first


def _rejected(one: Claim, holder: UUID) -> JobError:
    return JobError(
        f"{one.type_name}: its unique key is held by job {holder}",
        remedy='nothing was enqueued; on_conflict="keep" or "replace", or wait for that job',
    )


# What waits for its time first, as the scheduler that moves it; then jobs and their keys, as who settles one: else two
# could wait for each other.
_LOCK_DUE = """
SELECT 1 FROM pipeline.due WHERE id IN (
    SELECT job_id FROM pipeline.job_key WHERE key IN (SELECT json_array_elements_text(CAST(%s AS json))))
ORDER BY id FOR UPDATE
"""

_LOCK_HOLDERS = """
SELECT 1 FROM pipeline.job WHERE id IN (
    SELECT job_id FROM pipeline.job_key WHERE key IN (SELECT json_array_elements_text(CAST(%s AS json))))
ORDER BY id FOR UPDATE
"""

_CLAIM = """
INSERT INTO pipeline.job_key AS held (key, job_id, until)
SELECT x.key, x.id, clock_timestamp() + make_interval(secs => x.period_s)
FROM json_to_recordset(CAST(%s AS json)) AS x(key text, id uuid, period_s float8) ORDER BY x.key
ON CONFLICT (key) DO UPDATE SET job_id = excluded.job_id, until = excluded.until
WHERE held.until <= clock_timestamp()
RETURNING held.key
"""

_HOLDERS = """
SELECT key, job_id FROM pipeline.job_key WHERE key IN (SELECT json_array_elements_text(CAST(%s AS json)))
"""

_UNCLAIM = """
DELETE FROM pipeline.job_key AS h USING json_to_recordset(CAST(%s AS json)) AS x(key text, id uuid)
WHERE h.key = x.key AND h.job_id = x.id
"""

_REPLACE = """
UPDATE pipeline.job_key AS h SET job_id = x.id, until = clock_timestamp() + make_interval(secs => x.period_s)
FROM json_to_recordset(CAST(%s AS json)) AS x(key text, id uuid, period_s float8) WHERE h.key = x.key
"""

_CANCEL = """
SELECT count(*) FROM pipeline.cancel_jobs(ARRAY(
    SELECT j.id FROM json_array_elements_text(CAST(%s AS json)) AS x JOIN pipeline.job AS j ON j.id = CAST(x AS uuid)
    WHERE j.finished_at IS NULL))
"""
