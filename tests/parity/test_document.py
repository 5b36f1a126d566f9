"""docs/debezium-parity.md says what the suite knows, and what it calls refused is refused."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest
from cases import CASES, RESTART
from document import COLUMNS, OPTIONS, OUTCOMES, SOURCE, TESTS, document
from keys import KEYS
from outcomes import Differs, Fails, Ours, Refused, Same
from relays import connector_file
from sources import SOURCES

from pipeline.connect.file import read
from pipeline.connect.options import HONOURED, ROUTER
from pipeline.connect.router import Router
from pipeline.connect.routing import Placement, RouterOptions
from pipeline.errors import ConfigError
from pipeline.postgres.pgoutput import Column

ENVIRONMENT = {f"PG{name}": "1" for name in ("HOST", "PORT", "USER", "PASSWORD", "DATABASE")}


def test_the_page_is_what_the_suite_knows() -> None:
    page = Path(__file__).parents[2] / "docs" / "debezium-parity.md"
    assert page.read_text() == document(), "python tests/parity/document.py > docs/debezium-parity.md"
    shown = {one.case for one in OUTCOMES if isinstance(one, Same | Differs)}
    assert shown - {""} <= {*CASES, RESTART, *SOURCES}
    assert ROUTER.keys() - {"type", "plugin.version"} <= OPTIONS.keys()
    rows = [row.partition(": ")[0] for row in (*COLUMNS, *SOURCE, *KEYS)]
    assert HONOURED.keys() - {key.partition("=")[0] for row in rows for key in row.split(", ")} == set()
    assert {name: len(tests) for name, tests in TESTS.items()} == {
        "EventRouterTest": 44,
        "AbstractEventRouterTest": 9,
        "JsonSchemaDataTest": 8,
        "LogicalDecodingMessageIT": 7,
        "DecodeLogicalDecodingMessageContentTest": 4,
    }


def test_tests_of_ours_that_are_named_are_there() -> None:
    every_case = Ours("tests/parity/test_parity.py", "test_both_make_the_same_record_of_each_row")
    named = {every_case, *chain(*SOURCES.values()), *(one for one in OUTCOMES if isinstance(one, Ours))}
    root = Path(__file__).parents[2]
    there = {
        file: re.findall(r"^def (test_\w+)\(", (root / file).read_text(), re.M) for file in {one.file for one in named}
    }
    assert [one for one in named if one.test not in there[one.file]] == []
    assert all(SOURCES.values())


@pytest.mark.parametrize("outcome", sorted({one for one in OUTCOMES if isinstance(one, Refused)}, key=str), ids=str)
def test_what_is_called_refused_is_refused_by_its_key(outcome: Refused, tmp_path: Path) -> None:
    json_converter = "org.apache.kafka.connect.json.JsonConverter"
    more = {"value.converter": json_converter} if outcome.key == "value.converter.decimal.format" else {}
    file = connector_file(tmp_path, "refused", **{outcome.key: outcome.value}, **more)
    with pytest.raises(ConfigError) as refused:
        read(file, ENVIRONMENT)
    assert outcome.key in str(refused.value)


@pytest.mark.parametrize("outcome", sorted({one for one in OUTCOMES if isinstance(one, Fails)}, key=str), ids=str)
def test_a_column_that_is_missing_is_named(outcome: Fails) -> None:
    columns = [Column(name, 25, -1, 0) for name in ("id", "aggregatetype", "aggregateid", "payload")]
    options = {
        "table.field.event.key": RouterOptions(event_key="nowhere"),
        "table.fields.additional.placement": RouterOptions(placements=(Placement("nowhere", "header", "h"),)),
    }
    with pytest.raises(ConfigError, match=f"'nowhere', named by transforms.outbox.{outcome.option}, is not there"):
        Router(options[outcome.option]).bind("public.outbox", columns)
