"""The native relay against the real Debezium 3.7, on the same rows, record by record."""

from __future__ import annotations

import json
import secrets

import pytest
from captures import Parity, published
from cases import CASES, DEFAULTED, DIFFERENT, REKEYED, RESTART, ROUNDS, SECOND_TOPIC
from servers import environment, new_database

from pipeline.local import Endpoints

Rounds = dict[str, Parity]


@pytest.fixture(scope="module")
def rounds(endpoints: Endpoints, _template: str, connect_url: str, tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """Run one round after the other: each slot costs the server one of those that it may have."""
    found: Rounds = {}
    for name, groups in ROUNDS.items():
        with new_database(endpoints.postgres_dsn, _template) as database:
            prefix = f"t{secrets.token_hex(3)}"
            folder = tmp_path_factory.mktemp("parity")
            servers = environment(endpoints, database)
            with published(groups, connect_url, endpoints.kafka, servers, database, prefix, folder) as parity:
                found[name] = parity
    return found


ROUND_OF = {case: name for name, groups in ROUNDS.items() for case, (group, _) in CASES.items() if group in groups}
ROUND_OF[RESTART] = "router"


@pytest.mark.parametrize("case", ROUND_OF)
def test_both_make_the_same_record_of_each_row(case: str, rounds: Rounds) -> None:
    parity = rounds[ROUND_OF[case]]
    debezium, native = parity.records["debezium"], parity.records["native"]
    assert parity.written[case]
    for row in parity.written[case]:
        assert native[row] == debezium[row]


@pytest.mark.parametrize("name", ROUNDS)
def test_both_publish_the_same_rows_in_the_same_order_and_no_other(name: str, rounds: Rounds) -> None:
    parity = rounds[name]
    keyed = {
        side: [record for row, record in found.items() if record[2] is not None and row not in DIFFERENT]
        for side, found in parity.records.items()
    }
    assert keyed["native"] == keyed["debezium"]
    assert set(parity.records["native"]) - DIFFERENT == {row for rows in parity.written.values() for row in rows}


def test_a_changed_primary_key_is_an_insert_to_debezium_only(rounds: Rounds) -> None:
    parity = rounds["router"]
    assert REKEYED in parity.records["debezium"]
    assert REKEYED not in parity.records["native"]


def test_null_in_a_column_with_a_default_is_null_here_and_the_default_to_debezium(rounds: Rounds) -> None:
    parity = rounds["converters"]
    found = {side: dict(records[DEFAULTED][4])["type"] for side, records in parity.records.items()}
    assert {side: json.loads(header or b"")["payload"] for side, header in found.items()} == {
        "native": None,
        "debezium": "none",
    }


def test_an_envelopes_schema_is_named_by_its_topic_here_and_by_the_first_one_to_debezium(rounds: Rounds) -> None:
    parity = rounds["converters"]
    names = {
        side: json.loads(parity.records[side][SECOND_TOPIC][3] or b"")["schema"]["name"]
        for side in ("native", "debezium")
    }
    assert names["native"].endswith(".public.enveloped_schemas_text.enveloped.Value")
    assert names["debezium"].endswith(".public.enveloped_schemas_text.enveloped-schemas.Value")
