"""The pure builder: rows, SQL and COPY data, before any driver sees them."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Event, Job, Outbox
from pipeline.avro import schema_of
from pipeline.codec import unframe
from pipeline.errors import ConfigError, SchemaError
from pipeline.outbox import Envelope, SchemaIds, Statement, drive, uuid7, uuids7
from pipeline.row import copy_data, key_text, numbered


class Kind(StrEnum):
    A = "value-of-a"


class Placed(Event, aggregate="order", key="key"):
    key: str


class Noted(Event, aggregate="order", key="key", format="json"):
    key: str


class Mail(Job, queue="email", format="json"):
    to: str


IDS = [UUID(int=n) for n in range(1, 2000)]


class Database:
    """Answers lookups with an id, keeps what is inserted."""

    def __init__(self, schema_id: int | None = 7) -> None:
        self.schema_id = schema_id
        self.seen: list[Statement] = []

    def __call__(self, statement: Statement) -> list[tuple[Any, ...]]:
        self.seen.append(statement)
        return [(self.schema_id,)] if statement.returns and self.schema_id else []


def store(
    database: Database, envelopes: Sequence[Envelope], outbox: Outbox | None = None, ids: SchemaIds | None = None
) -> list[UUID]:
    return drive((outbox or Outbox()).store(envelopes, ids or SchemaIds(), lambda count: IDS[:count]), database)


def noted(key: str = "1") -> Envelope:
    return Envelope(Noted(key=key), "t")


def test_an_avro_row_has_the_id_of_its_own_schema() -> None:
    class One(Event, aggregate="order", key="key"):
        key: str

    database = Database()
    assert store(database, [Envelope(One(key="k"), "topic", {"h": "ö"}, None)]) == [IDS[0]]
    lookup, insert = database.seen
    assert lookup.rows == [("topic-One", schema_of(One).fingerprint)]
    [(event_id, stream, key, name, payload, topic, headers, trace)] = insert.rows
    assert (event_id, stream, key, name, topic, trace) == (IDS[0], "order", "k", "One", "topic", None)
    assert unframe(payload)[0] == 7
    assert json.loads(headers) == {"h": "ö"}


def test_a_schema_is_looked_up_once_and_a_missing_one_again() -> None:
    class One(Event, aggregate="order", key="key"):
        key: str

    ids, database = SchemaIds(), Database(None)
    with pytest.raises(SchemaError, match="was never pushed"):
        store(database, [Envelope(One(key="k"), "t")], ids=ids)
    database.schema_id = 7
    for _ in range(3):
        store(database, [Envelope(One(key="k"), "t")] * 2, ids=ids)
    assert [statement.returns for statement in database.seen] == [True, True, False, False, False]


def test_nothing_is_inserted_when_one_of_many_does_not_fit() -> None:
    database = Database()
    with pytest.raises(SchemaError):
        store(database, [noted(), Envelope(Noted.model_construct(key=3), "t")])
    assert database.seen == []
    assert store(database, []) == []
    assert database.seen == []


def test_a_job_without_key_is_keyed_by_its_id() -> None:
    database = Database()
    store(database, [Envelope(Mail(to="x"), "t")])
    assert database.seen[0].rows[0][1:3] == ("email", str(IDS[0]))


@pytest.mark.parametrize(
    ("value", "text"), [("a", "a"), (7, "7"), (UUID(int=1), str(UUID(int=1))), (Kind.A, "value-of-a")]
)
def test_one_value_always_gives_the_same_key(value: object, text: str) -> None:
    assert key_text(value, "Placed") == text
    assert type(key_text(value, "Placed")) is str


@pytest.mark.parametrize("value", [True, 1.0, None, "", "a\0", "\ud800", b"x"])
def test_a_key_that_is_no_key_is_refused(value: object) -> None:
    with pytest.raises(SchemaError, match="its key"):
        key_text(value, "Placed")


def test_many_rows_go_in_statements_of_at_most_500() -> None:
    database = Database()
    store(database, [noted(f"{n}") for n in range(1001)])
    batches = list(database.seen[0].batches())
    assert [len(parameters) // 8 for _, parameters in batches] == [500, 500, 1]
    assert all(sql.count("%s") == len(parameters) for sql, parameters in batches)
    assert numbered(batches[0][0]).count("$4000") == 1


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.lists(st.tuples(text, st.binary(), st.none() | st.dictionaries(text, text, min_size=1)), max_size=5))
def test_copy_data_says_what_the_rows_say(values: list[tuple[str, bytes, dict[str, str] | None]]) -> None:
    rows = [
        (IDS[n], "s", key, "T", payload, "t", headers and json.dumps(headers, ensure_ascii=False), None)
        for n, (key, payload, headers) in enumerate(values)
    ]
    data = io.BytesIO(b"".join(copy_data(rows)))
    assert data.read(19) == b"PGCOPY\n\xff\r\n\0" + bytes(8)
    for row in rows:
        assert int.from_bytes(data.read(2), "big") == 8
        headers = None if row[6] is None else b"\1" + row[6].encode()
        assert [field(data) for _ in range(8)] == [
            row[0].bytes, b"s", row[2].encode(), b"T", row[4], b"t", headers, None,
        ]  # fmt: skip
    assert data.read() == b"\xff\xff"


def field(data: io.BytesIO) -> bytes | None:
    """One field of COPY's binary format, read by its documentation."""
    length = int.from_bytes(data.read(4), "big", signed=True)
    return None if length < 0 else data.read(length)


def test_placeholders_become_numbers_and_doubled_percent_signs_single() -> None:
    assert numbered("a %s b%%s %s") == "a $1 b%s $2"


def test_identifiers_are_quoted() -> None:
    database = Database()
    store(database, [noted()], Outbox('a"b', "c%s;--", {"topic": "To", "headers": None, "traceparent": None}))
    assert database.seen[0].sql.startswith('INSERT INTO "a""b"."c%%s;--" ("id", "aggregatetype", "aggregateid",')
    assert '"To"' in database.seen[0].sql
    assert database.seen[0].copy == ""


@pytest.mark.parametrize(
    ("outbox", "message"),
    [
        (lambda: Outbox(columns={"payloads": "x"}), "no such column: payloads"),
        (lambda: Outbox(columns={"id": None}), "a table without id cannot be captured"),
        (lambda: Outbox(columns={"topic": "type"}), "stands for two columns"),
        (lambda: Outbox(extra={"topic": "x"}), "stands for two columns"),
        (lambda: Outbox(columns={"topic": ""}), "a name is empty"),
        (lambda: Outbox(schema=""), "a name is empty"),
        (lambda: Outbox(retain="none"), "only where a slot is known"),
        (lambda: Outbox(slots=("a",)), "only where a slot is known"),
        (lambda: Outbox(retain="none", slots="a"), "slots='a'"),  # type: ignore[arg-type]
        (lambda: Outbox(retain="nothing", slots=("a",)), "retain='nothing'"),  # type: ignore[arg-type]
    ],
)
def test_a_table_that_cannot_be_written_is_refused(outbox: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        outbox()


def test_extra_columns_and_json_payloads() -> None:
    database = Database()
    store(database, [noted()], Outbox(extra={"tenant": "a"}, payload="json"))
    assert database.seen[0].rows[0][4] == '{"key":"1"}'
    assert database.seen[0].rows[0][-1] == "a"
    with pytest.raises(ConfigError, match="holds JSON, this message is avro"):
        store(database, [Envelope(Placed(key="k"), "t")], Outbox(payload="json"))


def test_ids_are_version_7_and_ordered_by_time() -> None:
    ids = [*uuids7(900), *(uuid7() for _ in range(100))]
    assert all(found.version == 7 and found.variant == UUID(int=0x8 << 60).variant for found in ids)
    assert len(set(ids)) == 1000
    assert pickle.loads(pickle.dumps(ids[0])) == UUID(str(ids[0])) == ids[0]
    assert [found.int >> 80 for found in ids] == sorted(found.int >> 80 for found in ids)


def test_ids_of_one_millisecond_have_the_order_in_which_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [1_764_000_000_123_000_000 + n * 1_000 for n in range(1000)]
    clock = iter(moments)
    monkeypatch.setattr("pipeline.outbox.time.time_ns", lambda: next(clock))
    ids = [uuid7() for _ in moments]
    assert ids == sorted(ids)
    assert {found.int >> 80 for found in ids} == {1_764_000_000_123}
