"""Names as Debezium adjusts them; tests/parity/test_names.py has the same beside it."""

from __future__ import annotations

import pytest

from pipeline.capture import Batch, Routed, Unencoded, Unroutable
from pipeline.connect.adjustment import change_topic, field_names, schema_names
from pipeline.connect.expansion import Expansion
from pipeline.connect.router import Router
from pipeline.connect.routing import RouterOptions
from pipeline.errors import ConfigError
from pipeline.postgres.pgoutput import Column
from pipeline.probes import Readiness
from pipeline.relay.encoding import ConvertedSource


@pytest.mark.parametrize(
    ("name", "avro", "escaped"),
    [
        ("plain", "plain", "plain"),
        ("snake_case", "snake_case", "snake_u005fcase"),
        ("1st", "_1st", "_u0031st"),
        ("٣x", "_٣x", "_u663x"),  # a digit too, as Java knows them
        ("a.b-c", "a_b_c", "a_u002eb_u002dc"),
        ("😀", "__", "_ud83d_ude00"),
        ("", "", ""),
    ],
)
def test_names_of_fields(name: str, avro: str, escaped: str) -> None:
    assert [field_names(mode)(name) for mode in ("none", "avro", "avro_unicode")] == [name, avro, escaped]


def test_dots_may_stand_in_names_of_schemas() -> None:
    assert [schema_names(mode)("1.a-b") for mode in ("none", "avro", "avro_unicode")] == [
        "1.a-b", "_1.a_b", "_u0031.a_u002db",
    ]  # fmt: skip
    assert change_topic("p", "_", "my schema.my.table") == "p_my_schema_my.table"


def test_of_two_fields_with_one_name_the_first_that_is_there_stays() -> None:
    found = Expansion(field_names=field_names("avro")).encode(b'{"a b": null, "a-b": 1, "a_b": 2}')
    assert found == b'{"a_b":1}'


def test_two_columns_with_one_name_are_told() -> None:
    columns = [Column(name, 25, -1, 0) for name in ("id", "odd-name", "odd name")]
    with pytest.raises(ConfigError, match="columns 'odd-name' and 'odd name' are both 'odd_name'"):
        Router(RouterOptions(field_names=field_names("avro"))).bind("public.outbox", columns)


class OneBatch:
    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def start(self) -> bool:
        return True

    def read(self, wait_s: float) -> Batch:
        return self._batch

    def confirm(self, position: int, *, final: bool = False) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def test_a_dead_row_is_told_to_be_unencoded_where_it_would_have_been() -> None:
    rows: list[Routed] = [("t", b"k", b"v", [], 1, -1), ("t", None, None, [], 1, -1)]
    batch = Batch(records=rows, dead={index: (Unroutable("no", row), 7) for index, row in enumerate(rows)})
    source = ConvertedSource(OneBatch(batch), None, lambda _topic, value: b"made of " + value, Readiness("relay"))
    kinds = {index: (type(error), error.what, lsn) for index, (error, lsn) in source.read(0).dead.items()}
    assert kinds == {0: (Unencoded, "no", 7), 1: (Unroutable, "no", 7)}
