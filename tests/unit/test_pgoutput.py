"""Bytes of pgoutput: known messages, layouts, and noise."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.postgres import pgoutput
from pipeline.postgres.layout import insert_parser
from pipeline.postgres.pgoutput import BINARY, NULL, TEXT, UNCHANGED, Column, Relation, Value, parse

XID = struct.pack(">I", 77)


def column(value: bytes | None, kind: bytes = b"b") -> bytes:
    return b"n" if value is None else kind + struct.pack(">I", len(value)) + value


def row(*values: bytes | None, kind: bytes = b"b") -> bytes:
    return struct.pack(">H", len(values)) + b"".join(column(value, kind) for value in values)


def relation(*names: str) -> Relation:
    return Relation(7, "pipeline", "outbox", tuple(Column(name, 25, -1, name == "id") for name in names))


MESSAGES: list[tuple[bytes, bool, object]] = [
    (b"B" + struct.pack(">QqI", 1 << 40, -5, 9), False, pgoutput.Begin(1 << 40, -5, 9)),
    (b"C\0" + struct.pack(">QQq", 1, 2, 3), False, pgoutput.Commit(1, 2, 3)),
    (b"O" + struct.pack(">Q", 5) + b"node\0", False, pgoutput.Origin(5, "node")),
    (
        b"R" + struct.pack(">I", 7) + b"s\0t\0d" + struct.pack(">H", 1) + b"\1id\0" + struct.pack(">Ii", 2950, -1),
        False,
        Relation(7, "s", "t", (Column("id", 2950, -1, True),)),
    ),
    (b"R" + XID + struct.pack(">I", 7) + b"\0t\0d\0\0", True, Relation(7, "pg_catalog", "t", (), 77)),
    (b"Y" + struct.pack(">I", 9) + b"s\0mood\0", False, pgoutput.Type(9, "s", "mood")),
    (
        b"I" + struct.pack(">I", 7) + b"N\0\4" + column(b"a", b"t") + column(None) + b"u" + column(b"\0", b"b"),
        False,
        pgoutput.Insert(7, (Value(TEXT, b"a"), Value(NULL), Value(UNCHANGED), Value(BINARY, b"\0"))),
    ),
    (b"I" + XID + struct.pack(">I", 7) + b"N" + row(b"a"), True, pgoutput.Insert(7, (Value(BINARY, b"a"),), 77)),
    (
        b"U" + struct.pack(">I", 7) + b"K" + row(b"o") + b"N" + row(b"n"),
        False,
        pgoutput.Update(7, (Value(BINARY, b"o"),), (Value(BINARY, b"n"),)),
    ),
    (b"U" + struct.pack(">I", 7) + b"N" + row(b"n"), False, pgoutput.Update(7, None, (Value(BINARY, b"n"),))),
    (b"D" + struct.pack(">I", 7) + b"O" + row(b"o"), False, pgoutput.Delete(7, (Value(BINARY, b"o"),))),
    (b"T" + struct.pack(">IBII", 2, 1, 7, 8), False, pgoutput.Truncate((7, 8), 1)),
    (
        b"M\1" + struct.pack(">Q", 6) + b"pre\0" + struct.pack(">I", 2) + b"hi",
        False,
        pgoutput.LogicalMessage(True, 6, "pre", b"hi"),
    ),
    (b"S" + XID + b"\1", False, pgoutput.StreamStart(77, True)),
    (b"E", True, pgoutput.StreamStop()),
    (b"c" + XID + b"\0" + struct.pack(">QQq", 1, 2, 3), False, pgoutput.StreamCommit(77, 1, 2, 3)),
    (b"A" + XID + struct.pack(">I", 78), False, pgoutput.StreamAbort(77, 78)),
]


@pytest.mark.parametrize(("data", "streamed", "message"), MESSAGES, ids=lambda value: type(value).__name__)
def test_each_message_is_understood(data: bytes, streamed: bool, message: object) -> None:
    assert parse(data, streamed=streamed) == message


@pytest.mark.parametrize(("data", "streamed", "message"), MESSAGES, ids=lambda value: type(value).__name__)
def test_no_message_is_understood_when_cut_short_or_too_long(data: bytes, streamed: bool, message: object) -> None:
    for end in range(len(data)):
        with pytest.raises(SourceError):
            parse(data[:end], streamed=streamed)
    with pytest.raises(SourceError, match="left over"):
        parse(data + b"\0", streamed=streamed)


@settings(max_examples=3000)
@given(st.binary(max_size=80), st.sampled_from(b"BCORYIUDTMSEcA?"), st.booleans())
def test_noise_raises_nothing_but_source_errors(noise: bytes, kind: int, streamed: bool) -> None:
    with contextlib.suppress(SourceError):
        parse(bytes([kind]) + noise, streamed=streamed)


def test_an_insert_parser_gives_the_wanted_columns_in_the_wanted_order() -> None:
    f = insert_parser(relation("id", "a", "b", "c"), ["c", "id"], lambda *values: values)
    assert f(b"junk" + row(b"1", b"22", None, b""), 4) == (b"", b"1")
    assert f(row(b"1", None, b"333", None), 0) == (None, b"1")


def test_columns_that_are_not_wanted_may_be_text() -> None:
    f = insert_parser(relation("a", "b"), ["b"], lambda *values: values)
    assert f(b"\0\2" + column(b"x", b"t") + column(b"y"), 0) == (b"y",)
    with pytest.raises(SourceError, match="not binary"):
        f(row(b"x", b"y", kind=b"t"), 0)


@settings(max_examples=500)
@given(st.lists(st.none() | st.binary(max_size=300), min_size=1, max_size=8), st.data())
def test_an_insert_parser_agrees_with_the_general_one(values: list[bytes | None], data: st.DataObject) -> None:
    names = [f"c{number}" for number in range(len(values))]
    wanted = data.draw(st.lists(st.sampled_from(names), unique=True))
    found = insert_parser(relation(*names), wanted, lambda *got: got)(row(*values), 0)
    insert = parse(b"I" + struct.pack(">I", 7) + b"N" + row(*values))
    assert isinstance(insert, pgoutput.Insert)
    assert found == tuple(None if (v := insert.new[names.index(name)]).kind == NULL else v.data for name in wanted)


@settings(max_examples=2000)
@given(st.binary(max_size=60), st.booleans())
def test_an_insert_parser_raises_nothing_but_source_errors(noise: bytes, counted: bool) -> None:
    f = insert_parser(relation("a", "b", "c"), ["a", "c"], lambda *values: values)
    with contextlib.suppress(SourceError):
        f((b"\0\3" if counted else b"") + noise, 0)


def test_a_tuple_cut_anywhere_is_refused() -> None:
    f = insert_parser(relation("a", "b"), ["a", "b"], lambda *values: values)
    data = row(b"aaa", b"bbb")
    for end in range(len(data)):
        with pytest.raises(SourceError, match=r"pipeline\.outbox"):
            f(data[:end], 0)


def test_an_unknown_column_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        insert_parser(relation("a"), ["z"], lambda: None)
