"""Connector files: what runs, what is noted, what is refused and how it is said; and the router's records."""

from __future__ import annotations

import json
import struct
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.capture import Routed, Unroutable
from pipeline.connect.avro_options import AvroRegistry
from pipeline.connect.converters import AS_BYTES, Converter
from pipeline.connect.file import ConnectorFile, Polling, read
from pipeline.connect.router import Router
from pipeline.connect.routing import Placement, RouterOptions
from pipeline.errors import ConfigError, PipelineError

OURS = Path(__file__).parents[2] / "connectors" / "outbox.json"
ENV = {"PGHOST": "db", "PGPORT": "5433", "PGUSER": "u", "PGPASSWORD": "s3cret", "PGDATABASE": "app"}
R = "transforms.outbox."
DECODE = "transforms.decode.type"
DECODER = "io.debezium.connector.postgresql.transforms.DecodeLogicalDecodingMessageContent"
SELECTS = "snapshot.select.statement.overrides"
BASED = "snapshot.mode.configuration.based."
MATCHES = "org.apache.kafka.connect.transforms.predicates.TopicNameMatches"
PATTERN = "predicates.p.pattern"
ROUTER = "io.debezium.transforms.outbox.EventRouter"
CREATION = "topic.creation."
CREATED = {CREATION + "default.replication.factor": "1", CREATION + "default.partitions": "-1"}
JSON = "org.apache.kafka.connect.json.JsonConverter"


AVRO = {"value.converter": "io.confluent.connect.avro.AvroConverter"}
REGISTERED = AVRO | {"value.converter.schema.registry.url": "http://r"}
APICURIO: dict[str, str | None] = {
    "key.converter": "io.apicurio.registry.utils.converter.AvroConverter",
    "key.converter.apicurio.registry.url": "http://r/apis/registry/v2",
    "key.converter.apicurio.registry.auto-register": "true",
    "key.converter.apicurio.registry.as-confluent": "true",
    "key.converter.apicurio.registry.use-id": "contentId",
    "key.converter.apicurio.registry.headers.enabled": "false",
}
BINARY = "io.debezium.converters.BinaryDataConverter"
DELEGATE = "value.converter.delegate.converter.type"


def load(folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> ConnectorFile:
    loaded = json.loads(OURS.read_text())
    for key, value in (changes or {}).items():
        if value is None:
            loaded["config"].pop(key, None)
        else:
            loaded["config"][key] = value
    path = folder / "outbox.json"
    path.write_text(json.dumps(loaded))
    return read(path, ENV, **options)


def test_our_file_is_honoured_whole() -> None:
    found = read(OURS, ENV)
    assert found.database == {
        "host": "db", "port": "5433", "user": "u", "password": "s3cret", "dbname": "app", "sslmode": "prefer",
    }  # fmt: skip
    assert (found.name, found.slot, found.publication) == ("outbox", "pipeline_outbox", "pipeline_outbox")
    assert found.captures("pipeline", "outbox")
    assert not found.captures("pipeline", "outbox2")
    assert found.trust_slot
    assert found.status_every_s == 10
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"slot.nam": "x"}, ["slot.nam", "unknown key", "slot.name"]),
        ({"snapshot.mod": "x"}, ["snapshot.mod", "unknown key", "snapshot.mode"]),
        ({R + "route.by.feild": "x"}, ["route.by.feild", "unknown key", "route.by.field"]),
        ({"plugin.name": "wal2json"}, ["plugin.name", "wal2json", "pgoutput"]),
        ({"plugin.name": None}, ["plugin.name", "decoderbufs"]),
        ({"snapshot.mode": "never"}, ["snapshot.mode", "'never'", "no_data"]),
        ({"snapshot.mode": "custom"}, ["snapshot.mode", "'custom'", "when_needed"]),
        ({"snapshot.mode": "configuration_based"}, ["snapshot.mode", "neither snapshot nor stream"]),
        ({"snapshot.mode": "configuration_based", BASED + "snapshot.on.data.error": "true"}, [BASED, "when_needed"]),
        ({"snapshot.mode": "initial", "snapshot.include.collection.list": "("}, ["snapshot.include.collection.list"]),
        ({"snapshot.mode": "initial", SELECTS: "s.t"}, [SELECTS + ".s.t", "missing"]),
        ({"snapshot.mode": "initial", SELECTS + ".s.t": "SELECT 1"}, [SELECTS + ".s.t", "not in"]),
        ({"extended.headers.enabled": "some"}, ["extended.headers.enabled", "'some'", "false"]),
        ({"publication.autocreate.mode": "some"}, ["publication.autocreate.mode", "'some'", "filtered"]),
        ({"heartbeat.interval.ms": "often"}, ["heartbeat.interval.ms", "'often'", "0–600000"]),
        ({CREATION + "default.partitions": "3"}, [CREATION + "default.replication.factor", "is missing", "-1"]),
        ({**CREATED, CREATION + "default.partitions": "0"}, [CREATION + "default.partitions", "'0'"]),
        ({**CREATED, CREATION + "big.partitions": "3"}, [CREATION + "big.partitions", "its group is unknown"]),
        ({**CREATED, CREATION + "groups": "a", CREATION + "a.include": "("}, [CREATION + "a.include"]),
        ({"skipped.operations": "c,t"}, ["skipped.operations", "'c,t'", "u, d, t"]),
        ({"predicates": "p"}, ["predicates.p.type", "missing"]),
        ({"predicates": "p", "predicates.p.type": "x.Y"}, ["predicates.p.type", "'x.Y'", "TopicNameMatches"]),
        ({"predicates": "p", "predicates.p.type": MATCHES}, ["predicates.p.pattern", "missing"]),
        ({"predicates": "p", "predicates.p.type": MATCHES, PATTERN: "("}, [PATTERN, "unterminated"]),
        (
            {"predicates": "p", "predicates.p.type": MATCHES, PATTERN: "a", "predicates.p.name": "b"},
            ["predicates.p.name", "unknown key", PATTERN],
        ),
        (
            {"predicates": "p", "predicates.p.type": MATCHES, PATTERN: "a", "topic.naming.strategy": "x.Y"},
            ["topic.naming.strategy", "'x.Y'"],
        ),
        ({"predicates.q.type": MATCHES}, ["predicates.q.type", "unknown key"]),
        ({R + "predicate": "p"}, [R + "predicate", "'p' is not in predicates"]),
        ({R + "negate": "true"}, [R + "negate", "there is no predicate"]),
        (
            {
                "transforms": "decode,outbox",
                DECODE: DECODER,
                R + "predicate": "p",
                "predicates": "p",
                "predicates.p.type": MATCHES,
                PATTERN: "elsewhere",
            },
            [DECODE, "no Event Router behind it takes", "outbox.message"],
        ),
        (
            {"transforms": "outbox,two", "transforms.two.type": ROUTER, "pipeline.capture": "polling"},
            ["transforms", "one table", "transforms.two"],
        ),
        ({"database.password": "${env:NOWHERE}"}, ["database.password", "NOWHERE is not set"]),
        ({"database.password": "${vault:a:b}"}, ["database.password", "unknown provider 'vault'"]),
        ({"database.password": "${file:/nowhere:key}"}, ["database.password", "/nowhere"]),
        ({"database.port": "many"}, ["database.port", "'many'"]),
        ({"database.port": "5432,5433"}, ["database.port", "2 ports for 1 hosts", "one for each"]),
        ({"status.update.interval.ms": "soon"}, ["status.update.interval.ms", "'soon'"]),
        ({"slot.name": "My-Slot"}, ["slot.name", "My-Slot"]),
        ({"table.include.list": "("}, ["table.include.list"]),
        ({"table.include.list": None}, ["table.include.list", "missing"]),
        ({"table.exclude.list": "a.b"}, ["table.exclude.list", "table.include.list is there too"]),
        ({"schema.exclude.list": "("}, ["schema.exclude.list"]),
        ({"slot.stream.params": "origin=none;streaming=on"}, ["slot.stream.params", "streaming=on", "origin=none"]),
        ({"transforms": "decode,outbox", DECODE: DECODER}, [R + "table.field.event.timestamp", "logical message"]),
        ({"transforms": "outbox,decode", DECODE: DECODER}, ["transforms", "behind one DecodeLogicalDecoding"]),
        ({"transforms": "decode", DECODE: DECODER}, ["transforms", "an Event Router"]),
        ({"transforms": "decode,outbox", DECODE: DECODER, "pipeline.capture": "polling"}, ["pipeline.capture"]),
        (
            {
                "transforms": "decode,outbox",
                DECODE: DECODER,
                R + "table.field.event.timestamp": None,
                "binary.handling.mode": "hex",
            },
            ["binary.handling.mode", "decodes bytes only"],
        ),
        ({"time.precision.mode": "picoseconds"}, ["time.precision.mode", "isostring"]),
        ({"message.prefix.include.list": "("}, ["message.prefix.exclude.list", "is there too"]),
        ({"lsn.flush.mode": "manual"}, ["lsn.flush.mode", "'manual'", "connector"]),
        ({"read.only": "some"}, ["read.only", "'some'", "true | false"]),
        ({"snapshot.query.mode": "custom"}, ["snapshot.query.mode", "'custom'", "select_all"]),
        ({"snapshot.locking.mode": "custom"}, ["snapshot.locking.mode", "'custom'", "none | shared"]),
        ({"flush.lsn.source": "false"}, ["flush.lsn.source", "'false'", "true"]),
        ({"topic.delimiter": "/"}, ["topic.delimiter", "'/'"]),
        ({"topic.heartbeat.prefix": "a b"}, ["topic.heartbeat.prefix", "'a b.outbox'"]),
        ({"topic.heartbeat.name": "a b"}, ["topic.heartbeat.name", "'a b'"]),
        ({"field.name.adjustment.mode": "some"}, ["field.name.adjustment.mode", "'some'", "avro_unicode"]),
        ({R + "field.name.adjustment.mode": "some"}, [R + "field.name.adjustment.mode", "'some'", "avro_unicode"]),
        ({"exactly.once.support": "required"}, ["exactly.once.support", "'required'", "requested"]),
        ({"key.converter": "org.example.Converter"}, ["key.converter", "org.example.Converter", "StringConverter"]),
        ({"value.converter": JSON, "value.converter.schemas.enable": "x"}, ["value.converter.schemas.enable", "'x'"]),
        (AVRO, ["value.converter.schema.registry.url", "''", "http"]),
        (AVRO | {"value.converter.schema.registry.url": "http://a,http://b"}, ["registry.url", "one http"]),
        (REGISTERED | {"value.converter.basic.auth.credentials.source": "SASL_INHERIT"}, ["source", "USER_INFO"]),
        (REGISTERED | {"value.converter.basic.auth.credentials.source": "USER_INFO"}, ["user.info", "user:password"]),
        (REGISTERED | {"value.converter.auto.register.schemas": "false"}, ["auto.register.schemas", "'false'", "true"]),
        (REGISTERED | {"value.converter.bearer.auth.token": "x"}, ["bearer.auth.token: '…'", "basic.auth"]),
        (AVRO | {"value.converter.schema.registry.url": "http://u:p@a,http://b"}, ["registry.url: '…'"]),
        (
            REGISTERED | {"pipeline.payload.encode": "avro"},
            ["pipeline.payload.encode", "makes Avro"],
        ),
        ({"header.converter": AVRO["value.converter"]}, ["header.converter", "AvroConverter", "SimpleHeaderConverter"]),
        (
            {"value.converter": BINARY, "value.converter.delegate.converter.type": AVRO["value.converter"]},
            ["value.converter.delegate.converter.type", "AvroConverter", "JsonConverter"],
        ),
        (APICURIO | {"key.converter.apicurio.registry.use-id": "globalId"}, ["use-id", "'globalId'", "contentId"]),
        (APICURIO | {"key.converter.apicurio.registry.as-confluent": None}, ["as-confluent", "'false'", "true"]),
        (APICURIO | {"key.converter.apicurio.registry.headers.enabled": None}, ["headers.enabled", "'true'", "false"]),
        (APICURIO | {"key.converter.apicurio.registry.url": "http://r/apis"}, ["registry.url", "/apis/registry/v2"]),
        ({"key.converter.converter.encoding": "UTF-16"}, ["key.converter.converter.encoding", "UTF-16"]),
        ({"key.converter.encoding": "UTF-8"}, ["key.converter.encoding", "did you mean key.converter.converter.enc"]),
        ({"value.converter.schemas.enabl": "false"}, ["unknown key", "did you mean value.converter.schemas.enable?"]),
        ({"header.converter.schema.enable": "false"}, ["unknown key", "did you mean header.converter.schemas.enable?"]),
        ({"value.converter.nothing.known": "1"}, ["value.converter.nothing.known: unknown key", "--ignore-unknown"]),
        ({"value.converter.x.schemas.enable": "true"}, ["value.converter.x.schemas.enable: unknown key"]),
        (
            {"value.converter": BINARY, DELEGATE: JSON, DELEGATE + ".schemas.enabl": "false"},
            [f"did you mean {DELEGATE}.schemas.enable?"],
        ),
        (
            {"value.converter": JSON, "value.converter.replace.null.with.default": "x"},
            ["replace.null.with.default", "'x'", "true | false"],
        ),
        ({"transforms": "outbox,other", "transforms.other.type": "x"}, ["transforms.other.type", "'x'"]),
        ({R + "type": None}, [R + "type", "missing"]),
        ({R + "table.fields.additional.placement": "type:elsewhere"}, ["placement", "type:elsewhere"]),
        ({R + "table.fields.additional.placement": "type:envelope"}, ["placement", "envelope", "value.converter"]),
        (
            {R + "table.fields.additional.placement": "type:envelope:payload", "value.converter": JSON},
            ["placement", "two fields 'payload'"],
        ),
        ({R + "route.topic.regex": "("}, ["route.topic.regex"]),
        ({R + "route.topic.replacement": "${nobody}"}, ["route.topic.replacement", "nobody"]),
        ({R + "table.expand.json.payload": "true"}, ["table.expand.json.payload", "'true'"]),
        ({"producer.override.nothing": "1"}, ["producer.override.nothing"]),
        (
            {"producer.override.ssl.truststore.location": "/t.jks"},
            ["ssl.truststore.location", "type JKS", "convert it to PEM"],
        ),
        ({"producer.override.sasl.jaas.config": "x required;"}, ["sasl.jaas.config", "username"]),
        ({"tasks.max": ["1"]}, ["tasks.max", "a list"]),
        ({"name": "other"}, ["name", "'outbox'"]),
        ({"connector.class": "io.debezium.connector.mysql.MySqlConnector"}, ["connector.class", "MySql"]),
    ],
)
def test_what_cannot_run_is_refused_by_file_key_and_remedy(
    tmp_path: Path, changes: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, changes)
    for part in ["outbox.json", *told]:
        assert part in str(raised.value)
    assert raised.value.remedy


def test_each_key_of_the_databases_tls_is_libpqs_parameter(tmp_path: Path) -> None:
    tls = {
        "sslmode": "verify-full", "sslrootcert": "/tls/ca.pem", "sslcert": "/tls/c.pem", "sslkey": "/tls/c.key",
        "sslpassword": "k3y",
    }  # fmt: skip
    found = load(tmp_path, {f"database.{name}": value for name, value in tls.items()})
    assert {name: found.database[name] for name in tls} == tls
    assert "k3y" not in repr(found)
    with pytest.raises(ConfigError, match=r"database\.sslmode: 'sometimes'"):
        load(tmp_path, {"database.sslmode": "sometimes"})


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "outbox.json"
    path.write_bytes(b"\xef\xbb\xbf" + OURS.read_bytes())
    assert read(path, ENV).slot == read(OURS, ENV).slot


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"name": "outbox",\n  "config": {"a": 1,}}', "line 2, column"),
        ("[]", "is not a connector"),
        ('{"config": {"a": "1", "a": "2"}}', "a: stands there twice"),
        ('{"config": [], "name": "outbox"}', "is not a connector"),
        ('{"config": {}, "nam": "outbox"}', "unknown key 'nam'"),
        ("[" * 100_000, "nested too deeply"),
        ("", "is empty"),
        ("{", "line 1, column 2"),
        ('{"name": null, "config": {}}', "name: is null, not a text"),
    ],
)
def test_malformed_files_say_where(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "outbox.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"outbox\.json") as raised:
        read(path, ENV)
    assert told in str(raised.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: No such file"):
        read(tmp_path / "nowhere.json", ENV)


def test_unknown_keys_can_be_ignored_but_are_noted(tmp_path: Path) -> None:
    found = load(tmp_path, {"my.own": "x"}, ignore_unknown=True)
    assert any("my.own: unknown key: ignored" in notice for notice in found.notices)
    found = load(tmp_path, {"value.converter.schemas.enabl": "false"}, ignore_unknown=True)
    assert any("value.converter.schemas.enabl: unknown key: ignored" in notice for notice in found.notices)


def test_what_has_no_meaning_here_is_noted_with_the_reason(tmp_path: Path) -> None:
    bounds = ("max.batch.size", "max.queue.size", "max.queue.size.in.bytes")
    notices = load(tmp_path, {**dict.fromkeys(bounds, "99"), "errors.tolerance": "all"}).notices
    assert all(any(notice.startswith(f"{key} has no meaning") for notice in notices) for key in bounds)
    assert any(notice.startswith("errors.tolerance has no meaning") and "dlq" in notice for notice in notices)
    notices = load(tmp_path, {"value.converter": JSON, "value.converter.schemas.cache.size": "9"}).notices
    assert any(notice.startswith("value.converter.schemas.cache.size has no meaning") for notice in notices)


def test_a_flat_config_and_a_secret_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secrets.properties"
    secret.write_text("# mine\nother=1\n key = p=w \n")
    config = json.loads(OURS.read_text())["config"] | {"database.password": f"${{file:{secret}:key}}"}
    (tmp_path / "flat.json").write_text(json.dumps(config))
    found = read(tmp_path / "flat.json", ENV)
    assert (found.name, found.database["password"]) == ("flat", "p=w")


@pytest.mark.parametrize(
    ("changes", "when", "streams"),
    [
        ({"snapshot.mode": None}, "first", True),  # Debezium's default
        ({"snapshot.mode": "INITIAL"}, "first", True),
        ({"snapshot.mode": "initial_only"}, "first", False),
        ({"snapshot.mode": "when_needed"}, "first", True),
        ({"snapshot.mode": "always"}, "always", True),
        (
            {"snapshot.mode": "configuration_based", BASED + "snapshot.data": "true", BASED + "start.stream": "true"},
            "always",
            True,
        ),
        ({"snapshot.mode": "configuration_based", BASED + "snapshot.data": "true"}, "always", False),
    ],
)
def test_snapshot_modes(tmp_path: Path, changes: dict[str, Any], when: str, streams: bool) -> None:
    more = {SELECTS: "s.t", SELECTS + ".s.t": "SELECT 1;", "snapshot.include.collection.list": "s\\.t"}
    found = load(tmp_path, {**changes, **more}).snapshot
    assert found is not None
    assert (found.when, found.streams, found.selects) == (when, streams, {"s.t": "SELECT 1"})
    assert found.included("s.t")
    assert not found.included("s.t2")


@pytest.mark.parametrize(
    ("changes", "taken", "left"),
    [
        ({"table.include.list": "a\\.t,B\\.U{1\\,2}"}, ["a.t", "b.u", "b.uu"], ["a.u", "x.a.t", "b.uuu"]),
        ({"table.include.list": None, "table.exclude.list": "a\\..*"}, ["b.t"], ["a.t", "A.x"]),
        ({"table.include.list": None, "schema.include.list": "a,b"}, ["a.t", "b.t"], ["c.a", "ab.t"]),
        ({"table.include.list": ".*t", "schema.exclude.list": "a"}, ["b.t"], ["a.t", "b.u"]),
    ],
)
def test_lists_of_tables(tmp_path: Path, changes: dict[str, Any], taken: list[str], left: list[str]) -> None:
    found = load(tmp_path, changes)
    tables = [tuple(name.rsplit(".", 1)) for name in taken + left]
    assert [found.captures(*table) for table in tables] == [True] * len(taken) + [False] * len(left)


def test_lists_of_columns_and_what_else_is_read(tmp_path: Path) -> None:
    found = load(tmp_path, {"column.include.list": "s\\.t\\.(id|topic)", "slot.stream.params": " origin = none ; "})
    assert [found.sees("s.t", column) for column in ("id", "TOPIC", "payload")] == [True, True, False]
    assert found.stream == {"origin": "none"}
    assert load(tmp_path, {"column.exclude.list": "s.t.id"}).sees("s.t", "topic")
    assert load(tmp_path, {"offset.mismatch.strategy": "trust_greater_lsn"}).trust_slot
    assert not load(tmp_path, {"offset.mismatch.strategy": "trust_offset"}).trust_slot


def test_each_table_has_the_first_router_that_takes_it(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        {
            "topic.prefix": "p", "predicates": "p", "predicates.p.type": MATCHES, PATTERN: r"p\.s\.a_.*",
            "transforms": "two,outbox", "transforms.two.type": ROUTER, "transforms.two.predicate": "p",
            R + "predicate": "p", R + "negate": "true", "transforms.two.table.field.event.id": "name",
        },
    )  # fmt: skip
    assert [found.router_of(table).event_id for table in ("s.a b", "s.b")] == ["name", "id"]
    only = load(tmp_path, {"predicates": "p", "predicates.p.type": MATCHES, PATTERN: "x", R + "predicate": "p"})
    with pytest.raises(ConfigError, match=r"no Event Router takes the changes of table s\.t.*outbox\.s\.t"):
        only.router_of("s.t")


def test_rows_that_do_not_stay_go_with_the_wal_alone(tmp_path: Path) -> None:
    unretained = {"pipeline.retain": "none", "snapshot.mode": "no_data"}
    assert load(tmp_path).retains
    assert not load(tmp_path, unretained).retains
    with pytest.raises(ConfigError, match=r"pipeline\.retain: 'none' does not go with pipeline\.capture=polling"):
        load(tmp_path, {**unretained, "pipeline.capture": "polling"})
    for mode in ("initial", "when_needed", "always", "initial_only"):
        with pytest.raises(ConfigError, match=rf"snapshot\.mode={mode} with pipeline\.retain=none"):
            load(tmp_path, {**unretained, "snapshot.mode": mode})


def test_polling_is_asked_for_by_keys_of_ours_and_takes_no_snapshot(tmp_path: Path) -> None:
    polled = {"pipeline.capture": "polling", "poll.interval.ms": "50", "pipeline.polling.seq": "n"}
    found = load(tmp_path, polled)
    assert (found.polls, found.polling) == (True, Polling("n", "xid", 0.05))
    assert load(tmp_path, {**polled, "pipeline.polling.xid": "x"}).polling == Polling("n", "x", 0.05)
    assert not any("poll.interval.ms" in notice for notice in found.notices)
    beating = load(tmp_path, {**polled, "heartbeat.interval.ms": "1000", "slot.failover": "true"})
    assert beating.heartbeat_every_s == 1
    assert [told.split()[0] for told in beating.notices if "no meaning with" in told] == ["slot.failover"]
    assert not load(tmp_path).polls
    assert any("poll.interval.ms" in notice for notice in load(tmp_path).notices)
    with pytest.raises(ConfigError, match=r"snapshot\.mode: 'initial' does not go with pipeline\.capture=polling"):
        load(tmp_path, {**polled, "snapshot.mode": "initial"})
    assert read(OURS.with_name("outbox-polling.json"), ENV).polling == Polling("seq", "xid", 0.05)


def test_without_a_snapshot_there_is_none(tmp_path: Path) -> None:
    assert load(tmp_path, {"snapshot.mode": "no_data"}).snapshot is None
    streams = {"snapshot.mode": "configuration_based", BASED + "start.stream": "true"}
    assert load(tmp_path, streams).snapshot is None


def test_java_producer_settings_become_librdkafkas(tmp_path: Path) -> None:
    override = "producer.override."
    jaas = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="u" password="p w";'
    found = load(
        tmp_path,
        {
            override + "security.protocol": "SASL_SSL",
            override + "sasl.mechanism": "PLAIN",
            override + "sasl.jaas.config": jaas,
            override + "ssl.truststore.location": "/ca.pem",
            override + "ssl.truststore.type": "PEM",
            override + "max.request.size": "2000000",
            override + "acks": "all",
        },
    )
    assert found.producer == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "u",
        "sasl.password": "p w",
        "ssl.ca.location": "/ca.pem",
        "message.max.bytes": "2000000",
    }


@pytest.mark.parametrize(
    ("text", "user", "password"),
    [
        ('x required username=a password="";', "a", ""),
        (r'x required username="a\"b" password="c\\;\t\101";', 'a"b', "c\\;\tA"),
        ("x required note=\"username='no'\" username='a' password='b\"';", "a", 'b"'),
    ],
)
def test_a_login_is_read_as_java_reads_it(tmp_path: Path, text: str, user: str, password: str) -> None:
    found = load(tmp_path, {"producer.override.sasl.jaas.config": text}).producer
    assert (found["sasl.username"], found["sasl.password"]) == (user, password)


@given(st.text(max_size=200) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_noise_raises_nothing_but_our_errors(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.json"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(PipelineError):
        read(path, ENV)


@dataclass
class C:
    name: str
    type_oid: int
    modifier: int = -1


OUTBOX = [
    C("id", 2950), C("aggregatetype", 25), C("aggregateid", 25), C("type", 25), C("payload", 17), C("topic", 25),
    C("headers", 3802), C("created_at", 1114), C("part", 23), C("flag", 16), C("big", 20),
]  # fmt: skip
ID = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
ROW: dict[str, bytes | None] = {
    "id": ID.bytes, "aggregatetype": b"order", "aggregateid": b"k1", "type": b"T", "payload": b"p",
    "topic": b"a.topic",
    "headers": b'\1{"a": 1}', "created_at": struct.pack(">q", 1_000_999), "part": struct.pack(">i", 3),
    "flag": b"\1", "big": struct.pack(">q", -5),
}  # fmt: skip
Y2K_MS = 946_684_800_000


def route(options: RouterOptions, columns: list[C] | None = None, **changes: bytes | None) -> Routed:
    names, function = Router(options, clock=lambda: 5.0).bind("s.t", columns or OUTBOX)
    return function(*[{**ROW, **changes}[name] for name in names])


@pytest.mark.parametrize("default", ["v", "a v b", "it's v", 'v "v" \\ v', "\\'v"])
def test_a_columns_default_stands_in_its_schema_as_it_is_whatever_it_says(default: str) -> None:
    declared = {"payload": (True, "'" + default.replace("'", "''") + "'::text")}
    options = RouterOptions(value=Converter("json", schemas=True))
    columns = [C("payload", 25) if column.name == "payload" else column for column in OUTBOX]
    names, function = Router(options, clock=lambda: 5.0).bind("s.t", columns, lambda: declared)
    for payload in (b"p", None):
        value = function(*[{**ROW, "payload": payload}[name] for name in names])[2]
        assert value is not None
        assert json.loads(value)["schema"]["default"] == default


def test_the_defaults_are_debeziums() -> None:
    assert route(RouterOptions()) == ("outbox.event.order", b"k1", b"p", [("id", str(ID))], 5000, -1)


def test_columns_go_to_headers_timestamp_and_partition() -> None:
    places = ("headers", "flag", "big", "created_at")
    options = RouterOptions(
        route_by="topic", route_replacement="${routedByValue}", timestamp="created_at",
        placements=(*(Placement(n, "header", f"x-{n}") for n in places), Placement("part", "partition", "part")),
    )  # fmt: skip
    topic, _, _, headers, timestamp, partition = route(options)
    assert (topic, timestamp, partition) == ("a.topic", Y2K_MS + 1000, 3)
    assert headers == [
        ("id", str(ID)),
        ("x-headers", b'{"a": 1}'),
        ("x-flag", "true"),
        ("x-big", "-5"),
        ("x-created_at", str(Y2K_MS * 1000 + 1_000_999)),
    ]
    nothing = route(options, headers=None, flag=None, big=None, created_at=None, part=None)
    assert nothing[3:] == ([("id", str(ID)), *((f"x-{n}", None) for n in places)], 5000, -1)


@pytest.mark.parametrize(
    ("regex", "replacement", "value", "topic"),
    [
        ("(?<first>.).*", "x-${first}", b"order", "x-o"),
        ("(.*)-(.*)", "$2.$1", b"a-b", "b.a"),
        ("nothing", "x", b"order", "order"),  # no match of the whole: as it is
        ("ord", "x", b"order", "order"),
        (".*", r"a\$1", b"order", None),  # an escaped dollar is one, and no topic has it
    ],
)
def test_topics_are_named_as_javas_regex_router_does(
    regex: str, replacement: str, value: bytes, topic: str | None
) -> None:
    options = RouterOptions(route_regex=regex, route_replacement=replacement)
    if topic is None:
        with pytest.raises(Unroutable, match="not one that Kafka allows"):
            route(options, aggregatetype=value)
    else:
        assert route(options, aggregatetype=value)[0] == topic


def test_tombstones_only_where_asked_and_bytes_are_never_empty() -> None:
    text = [replace(c, type_oid=25) if c.name == "payload" else c for c in OUTBOX]
    plain, tombstones = RouterOptions(), RouterOptions(tombstone_on_empty=True)
    assert route(plain, text, payload=b"  ")[2] == b"  "
    assert route(tombstones, text, payload=b" \n ")[2] is None
    assert route(tombstones, text, payload=b" x")[2] == b" x"
    assert route(tombstones, payload=b"")[2] == b""
    assert route(tombstones, payload=None)[1:4] == (b"k1", None, [("id", str(ID))])


def test_keys_have_the_form_that_the_string_converter_gives_them() -> None:
    for column, key in [("id", str(ID).encode()), ("big", b"-5"), ("flag", b"true"), ("headers", b'{"a": 1}')]:
        assert route(RouterOptions(event_key=column))[1] == key
    assert route(RouterOptions(), aggregateid=None)[1] is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"aggregatetype": None}, "is empty"),
        ({"aggregatetype": b"a/b"}, "Kafka allows"),
        ({"aggregatetype": b"x" * 250}, "Kafka allows"),
        ({"aggregatetype": b"\xff"}, "Kafka allows"),
        ({"created_at": struct.pack(">q", 2**63 - 1)}, "out of range"),
        ({"created_at": struct.pack(">q", -(2**63))}, "out of range"),
        ({"part": struct.pack(">i", -1)}, "negative"),
    ],
)
def test_a_row_that_makes_no_record_comes_back_with_what_there_is(changes: dict[str, bytes | None], told: str) -> None:
    options = RouterOptions(timestamp="created_at", placements=(Placement("part", "partition", "part"),))
    for _ in range(2):  # a bad name is not remembered as a good one
        with pytest.raises(Unroutable, match=told) as raised:
            route(options, **changes)
        assert raised.value.record[1:4] == (b"k1", b"p", [("id", str(ID))])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            RouterOptions(event_key="nope"),
            "column 'nope', named by transforms.outbox.table.field.event.key, is not there",
        ),
        (RouterOptions(route_by="part"), "is of integer"),
        (RouterOptions(timestamp="big"), "is of bigint"),
        (RouterOptions(placements=(Placement("payload", "header", "p"),)), "is of bytea"),
        (RouterOptions(placements=(Placement("nope", "header", "p"),)), "'nope'"),
        (RouterOptions(key=AS_BYTES), "column 'aggregateid', named by transforms.outbox.table.field.event.key"),
        (RouterOptions(header=AS_BYTES), "is of uuid, which its converter does not write"),
        (RouterOptions(placements=(Placement("big", "partition", "p"),)), "is of bigint"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error_of_configuration(options: RouterOptions, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        route(options)
    assert told in str(raised.value)


def test_missing_additional_columns_can_be_ignored() -> None:
    options = RouterOptions(placements=(Placement("nope", "header", "p"),), ignore_missing=True)
    assert route(options)[3] == [("id", str(ID))]


@pytest.mark.parametrize("key", ["database.port", "status.update.interval.ms"])
@pytest.mark.parametrize("digits", ["9" * 5000, "\u0663", "", "0x1f"])
def test_numbers_that_are_none_are_named(tmp_path: Path, key: str, digits: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load(tmp_path, {key: digits})


def test_of_several_servers_the_primary_is_asked_for(tmp_path: Path) -> None:
    found = load(tmp_path, {"database.hostname": "a,b", "database.port": "5432,5433"})
    assert (found.database["host"], found.database["port"]) == ("a,b", "5432,5433")
    assert found.database["target_session_attrs"] == "primary"
    assert any("Debezium takes one only" in notice for notice in found.notices)
    assert "target_session_attrs" not in load(tmp_path, {"database.hostname": "a"}).database


def test_headers_of_the_connector_are_there_for_predicates_and_need_a_converter_of_text(tmp_path: Path) -> None:
    marked = {
        "predicates": "p", "predicates.p.type": MATCHES.replace("TopicNameMatches", "HasHeaderKey"),
        "predicates.p.name": "__debezium.context.taskId", R + "predicate": "p",
        R + "table.fields.additional.placement": None,
    }  # fmt: skip
    router = load(tmp_path, {**marked, "extended.headers.enabled": "true"}).router_of("s.t")
    assert [name for name, _ in route(router)[3]][:5] == [
        "__debezium.context.connectorLogicalName", "__debezium.context.taskId", "__debezium.context.connectorName",
        "__debezium.context.runId", "id",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no Event Router takes"):
        load(tmp_path, marked).router_of("s.t")
    with pytest.raises(ConfigError, match=r"table s\.t: header.converter does not write text"):
        route(replace(router, header=AS_BYTES, event_id="payload"))


TRACED = [*OUTBOX, C("tracingspancontext", 25)]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("context", "carried"),
    [
        (None, []),
        (b"", []),
        (b"traceparent=nobody", []),
        (f"traceparent=ff{PARENT[2:]}".encode(), []),
        (f"traceparent={PARENT}".encode(), [("traceparent", PARENT)]),
        (f"tracestate=a=b\ntraceparent: {PARENT}".encode(), [("traceparent", PARENT), ("tracestate", "a=b")]),
        (f"traceparent={PARENT}\ntracestate=;;".encode(), [("traceparent", PARENT)]),
        (b"\\u12", []),
        (b"\xff\\", []),
    ],
)
def test_without_opentelemetry_a_rows_trace_goes_on_as_it_came(
    context: bytes | None, carried: list[tuple[str, str]]
) -> None:
    assert route(RouterOptions(), TRACED, tracingspancontext=context)[3] == [*carried, ("id", str(ID))]


@given(st.text())
def test_no_trace_makes_a_row_fail(text: str) -> None:
    assert route(RouterOptions(), TRACED, tracingspancontext=text.encode(errors="replace"))[3][-1][0] == "id"


def test_avro_converters_name_their_registries(tmp_path: Path) -> None:
    more = {
        "key.converter.apicurio.auth.username": "u", "key.converter.apicurio.auth.password": "p",
        "value.converter.basic.auth.credentials.source": "USER_INFO",
        "value.converter.basic.auth.user.info": "u:p:q", "value.converter.max.schemas.per.subject": "7",
    }  # fmt: skip
    found = load(tmp_path, APICURIO | REGISTERED | more)
    (router,) = found.routers
    assert router.key.avro == AvroRegistry("http://r/apis/registry/v2", "u", "p", apicurio=True)
    assert router.value.avro == AvroRegistry("http://r", "u", "p:q")
    assert "p:q" not in repr(found)
    assert not [notice for notice in found.notices if "converter" in notice]
