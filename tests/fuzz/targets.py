"""What is fuzzed: the doors through which bytes come that others have written, and the errors each may raise."""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from uuid import UUID
from zlib import crc32

from pydantic import BaseModel

from pipeline import Event, Money
from pipeline.avro import schema_of
from pipeline.codec import Decoder, encode
from pipeline.connect.file import read
from pipeline.deadletter import Letter
from pipeline.errors import ConfigError, PoisonError, SchemaError, SourceError
from pipeline.failure import Failure
from pipeline.headers import DeadLetter, NewerFormat, RetryState
from pipeline.job import Options
from pipeline.postgres.layout import insert_parser
from pipeline.postgres.pgoutput import Column, Relation, parse
from pipeline.progress import Mark, Progress, Suspicion
from pipeline.record import Header, Record
from pipeline.retry import RetryPolicy
from pipeline.terms import HEADER, Terms
from tests.fuzz.mutation import mutated

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """``make`` draws an input, ``run`` takes it; ``share`` is how many of a thousand inputs go here."""

    name: str
    share: int
    make: Callable[[Random], object]
    run: Callable[[object], object]
    allowed: tuple[type[BaseException], ...]


# ── the WAL ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _column(value: bytes | None, kind: bytes = b"b") -> bytes:
    return b"n" if value is None else kind + struct.pack(">I", len(value)) + value


_ROW = struct.pack(">H", 4) + b"".join(_column(value) for value in (b"\1" * 16, b"order", None, b'{"a": 1}' * 9))
_WAL = (
    b"B" + struct.pack(">QqI", 1 << 40, -5, 9),
    b"C\0" + struct.pack(">QQq", 1, 2, 3),
    b"O" + struct.pack(">Q", 5) + b"node\0",
    b"R" + struct.pack(">I", 7) + b"s\0t\0d" + struct.pack(">H", 1) + b"\1id\0" + struct.pack(">Ii", 2950, -1),
    b"Y" + struct.pack(">I", 9) + b"s\0mood\0",
    b"I" + struct.pack(">I", 7) + b"N" + _ROW,
    b"I" + struct.pack(">II", 77, 7) + b"N\0\2" + _column(b"t", b"t") + b"u",
    b"U" + struct.pack(">I", 7) + b"K" + _ROW + b"N" + _ROW,
    b"D" + struct.pack(">I", 7) + b"O" + _ROW,
    b"T" + struct.pack(">IBII", 2, 1, 7, 8),
    b"M\1" + struct.pack(">Q", 6) + b"pre\0" + struct.pack(">I", 2) + b"hi",
    b"S" + struct.pack(">I", 77) + b"\1",
    b"E",
    b"c" + struct.pack(">I", 77) + b"\0" + struct.pack(">QQq", 1, 2, 3),
    b"A" + struct.pack(">II", 77, 78),
)
_insert = insert_parser(
    Relation(7, "pipeline", "outbox", tuple(Column(name, 17, -1, False) for name in ("id", "type", "key", "payload"))),
    ["payload", "id", "key"],
    lambda *values: values,
)


def _wal(chance: Random) -> tuple[bytes, bool]:
    return mutated(_WAL, chance), chance.random() < 0.5


def _parse(given: tuple[bytes, bool]) -> object:
    return parse(given[0], streamed=given[1])


# ── values ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class _Line(BaseModel):
    article: str
    price: Money
    tags: list[str] = []


class _Order(Event, aggregate="order", key="order_id"):
    order_id: UUID
    at: datetime
    day: date | None
    colour: _Colour
    lines: list[_Line]
    notes: dict[str, int | str | None]
    paid: bool = False


class _Plain(Event, aggregate="order", key="order_id", format="json"):
    order_id: UUID
    at: datetime
    lines: list[_Line]


class _Schemas:
    def text(self, schema_id: int) -> str:
        if schema_id != 1:
            raise SchemaError(f"schema id {schema_id}: unknown", remedy="", retryable=True)
        return schema_of(_Order).text


_LINES = [_Line(article="ä" * n, price=Decimal("12.34"), tags=["x"] * n) for n in range(3)]
_AT = datetime(2026, 3, 29, 2, 30, tzinfo=UTC)
_ORDERS = [
    encode(
        _Order(
            order_id=UUID(int=n), at=_AT, day=_AT.date() if n else None, colour=_Colour.BLUE, lines=_LINES[:n],
            notes={"a": 1, "b": "two", "c": None},
        ),
        1,
    )
    for n in range(4)
]  # fmt: skip
_PLAIN = [encode(_Plain(order_id=UUID(int=n), at=_AT, lines=_LINES[:n]), None) for n in range(4)]
_decoder = Decoder(_Schemas())

# ── headers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _records() -> list[Record]:
    record = Record("outbox.event.order", 3, 4711, b"k", b"v", [("id", b"0190a1b2-0000-7000-8000-000000000001")], 1)
    state = RetryState.first(record)
    retried = []
    for n in range(3):
        state = state.failed(Failure("ValueError", f"no {n}", "trace\n" * n), 1_700_000_000_000 + n)
        retried.append(record._replace(headers=state.headers(record)))
    letter = DeadLetter(
        state.origin, group="shop.billing", attempts=3, error=Failure("ValueError", "no", "trace"),
        first_error=state.first_error, first_failure_ms=1, died_ms=2, generation=1, history=state.history,
    )  # fmt: skip
    spring: list[Header] = [
        ("kafka_dlt-original-topic", b"orders"),
        ("kafka_dlt-original-partition", struct.pack(">i", 2)),
        ("kafka_dlt-original-offset", struct.pack(">q", 9)),
        ("kafka_dlt-exception-message", b"no"),
    ]
    return [*retried, record._replace(headers=letter.headers(record)), record._replace(headers=spring)]


_RECORDS = _records()


def _headers(chance: Random) -> Record:
    record = chance.choice(_RECORDS)
    headers: list[Header] = list(record.headers)
    for _ in range(chance.randint(1, 3)):
        place = int(chance.random() * len(headers))
        name, value = headers[place]
        match int(chance.random() * 8):
            case 0:
                del headers[place]
            case 1:
                headers.append((name, None))
            case 2:
                headers[place] = (mutated([name.encode()], chance).decode("utf-8", "replace"), value)
            case 3:
                headers[place] = (name, chance.choice(headers)[1])
            case _:
                headers[place] = (name, mutated([value or b""], chance))
        if not headers:
            break
    return record._replace(headers=headers)


_POLICY = RetryPolicy(attempts=9, first_s=0.5)
_TERMS = [
    Options(retry=_POLICY, timeout_s=5, headers={"tenant": "7"}).row_headers[HEADER].encode(),
    Options(expires_s=1e6).row_headers[HEADER].encode(),
]


def _terms(chance: Random) -> dict[str, bytes | None]:
    if chance.random() < 0.3:
        return {"headers": mutated([json.dumps({HEADER: text.decode()}).encode() for text in _TERMS], chance)}
    return {"headers": json.dumps({HEADER: mutated(_TERMS, chance).decode("utf-8", "replace")}).encode()}


# ── what stands beside a commit ────────────────────────────────────────────────────────────────────────────────────

_MARKS = [
    Progress(7, 999, ((7, 9), (40, 40), (90, 700)), True, 1000, frozenset({8, 9}), {9: Suspicion(2, 1)}, 9)
    .mark()
    .metadata.encode(),
    Progress(7, 7, in_hand=True).mark().metadata.encode(),
]


def _mark(chance: Random) -> Mark:
    if chance.random() < 0.3:
        return Mark(7, mutated(_MARKS, chance).decode("utf-8", "replace"))
    raw = mutated([b64decode(mark[3:])[:-4] for mark in _MARKS], chance)  # wrong within, and its sum is right
    return Mark(7, "p1:" + b64encode(raw + crc32(raw).to_bytes(4, "big")).decode())


# ── connector files ────────────────────────────────────────────────────────────────────────────────────────────────

_folder = TemporaryDirectory(prefix="fuzz-")  # removed when the interpreter ends
_file = Path(_folder.name) / "outbox.json"
_CONNECTORS = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "connectors").glob("*.json"))]
_VALUES: Sequence[object] = (
    "", "true", "-1", "1e999", "9" * 5000, "${env:PGHOST}", "${env:}", "${", "${file:/nowhere:x}", "(", "(?<n>.*)",
    "(?i)a{9999}", "a:header:b", ":::", "a" * 300, "\0", "ü", None, [], {}, 1e308, -0.0, True,
)  # fmt: skip
_ENV = dict.fromkeys(("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "REGISTRY_URL"), "5432")


def _connector(chance: Random) -> bytes:
    if chance.random() < 0.4:
        return mutated(_CONNECTORS, chance)
    loaded = json.loads(chance.choice(_CONNECTORS))
    loaded["name"] = "outbox"
    config = loaded["config"]
    for _ in range(chance.randint(1, 3)):
        key = chance.choice(sorted(config))
        match int(chance.random() * 4):
            case 0 if len(config) > 1:
                del config[key]
            case 1:
                config[key] = mutated([str(config[key]).encode()], chance).decode("utf-8", "replace")
            case 2:
                config[mutated([key.encode()], chance).decode("utf-8", "replace")] = config[key]
            case _:
                config[key] = chance.choice(_VALUES)
    return json.dumps(loaded).encode()


def _read(given: bytes) -> object:
    _file.write_bytes(given)
    return read(_file, _ENV)


def _target(
    name: str, share: int, make: Callable[[Random], object], run: Callable[..., object], *allowed: type[BaseException]
) -> Target:
    return Target(name, share, make, run, allowed)


TARGETS = [
    _target("pgoutput messages", 350, _wal, _parse, SourceError),
    _target("pgoutput inserts", 200, lambda c: mutated([_ROW], c), lambda data: _insert(data, 0), SourceError),
    _target(
        "Avro values",
        150,
        lambda c: mutated(_ORDERS, c),
        lambda v: _decoder.decode(v, _Order),
        PoisonError,
        SchemaError,
    ),
    _target("JSON values", 60, lambda c: mutated(_PLAIN, c), lambda v: _decoder.decode(v, _Plain), PoisonError),
    _target("retry headers", 90, _headers, RetryState.of, PoisonError, NewerFormat),
    _target("terms of jobs", 40, _terms, Terms.of, PoisonError, NewerFormat),
    _target("dead letters", 60, _headers, Letter.of),
    _target("commit metadata", 60, _mark, Progress.read),
    _target("connector files", 30, _connector, _read, ConfigError),
]
