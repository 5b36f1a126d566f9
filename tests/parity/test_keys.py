"""Every key that Debezium's connector knows is known here, and a value that is honoured here is one to Debezium."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from relays import connector_file

from pipeline.connect.file import read
from pipeline.connect.options import HONOURED
from pipeline.errors import ConfigError

ENVIRONMENT = {f"PG{name}": "1" for name in ("HOST", "PORT", "USER", "PASSWORD", "DATABASE")}
CLASS = "io.debezium.connector.postgresql.PostgresConnector"


@pytest.fixture(scope="module")
def debezium(connect_url: str) -> dict[str, list[str]]:
    """Key → the values that it may have, none where any is one."""
    request = urllib.request.Request(
        f"{connect_url}/connector-plugins/{CLASS}/config/validate",
        json.dumps({"connector.class": CLASS, "name": "x"}).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)["configs"]
    return {one["definition"]["name"]: one["value"]["recommended_values"] for one in found}


def test_every_key_of_debezium_is_known(debezium: dict[str, list[str]], tmp_path: Path) -> None:
    assert len(debezium) > 150
    unknown = []
    for key in debezium.keys() - {"name"}:
        try:
            read(connector_file(tmp_path, "known", **{key: "x"}), ENVIRONMENT)
        except ConfigError as error:
            unknown += [key] if "unknown key" in error.what else []
    assert not unknown


def test_values_that_are_honoured_are_debeziums(debezium: dict[str, list[str]]) -> None:
    compared = 0
    for key, (values, _) in HONOURED.items():
        if values and (known := debezium.get(key)):
            compared += 1
            assert {value for value in values if "." not in value} <= set(known), key
    assert compared > 5
