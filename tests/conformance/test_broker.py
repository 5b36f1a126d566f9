"""What workers and tests may take for granted of a broker, on Kafka and on the one in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from clusters import FEATURES, Cluster, Kafka, Member, Memory, poll_until, send
from confluent_kafka import murmur2

from pipeline.errors import BrokerError
from pipeline.progress import Mark


def on(feature: str = "") -> pytest.MarkDecorator:
    """Run a test on those brokers that have a feature."""
    return pytest.mark.parametrize(
        "cluster", [name for name, has in FEATURES.items() if not feature or feature in has], indirect=True
    )


# What is about members alone, and takes a heartbeat or two of 5 s each: with the broker's assignment (KIP-848), too.
with_both_protocols = pytest.mark.parametrize("cluster", [*sorted(FEATURES), "kafka-kip848"], indirect=True)


@pytest.fixture(params=sorted(FEATURES))
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    protocol = "consumer" if request.param == "kafka-kip848" else "classic"
    made: Any = Memory() if request.param == "memory" else Kafka(request.getfixturevalue("bootstrap_servers"), protocol)
    yield made
    made.close()


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A prefix for topics and groups; on Kafka they are deleted at the end."""
    if "memory" in request.node.name:
        return "m"
    return str(request.getfixturevalue("prefix"))


@pytest.fixture
def topic(cluster: Cluster, unique: str) -> str:
    name = f"{unique}.orders"
    cluster.create(name, 3)
    return name


# ── records ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_records_come_back_in_order_byte_for_byte(cluster: Cluster, unique: str, topic: str) -> None:
    headers = [("id", "ü"), ("raw", b"\0\xff"), ("none", None), ("id", b"again"), ("empty", b"")]
    producer, values = cluster.producer(), [b"v%d" % number for number in range(50)]
    send(producer, topic, *values, key=b"k", headers=headers, timestamp_ms=1_700_000_000_123)
    member = Member(cluster.consumer(f"{unique}.g"), {topic: "earliest"})
    poll_until(lambda: len(member.records) == 50, member)
    assert member.values == values
    assert [record.offset for record in member.records] == list(range(50))
    assert len({record.partition for record in member.records}) == 1
    first = member.records[0]
    assert (first.topic, first.key, first.timestamp_ms) == (topic, b"k", 1_700_000_000_123)
    assert first.headers == [("id", "ü".encode()), ("raw", b"\0\xff"), ("none", None), ("id", b"again"), ("empty", b"")]


def test_keys_choose_partitions_as_javas_clients_do(cluster: Cluster, unique: str, topic: str) -> None:
    producer = cluster.producer()
    keys = ["", "a", "ab", "abc", "abcd", "order-17", "ключ"]
    for key in keys:
        send(producer, topic, key.encode(), key=key.encode())
    member = Member(cluster.consumer(f"{unique}.g"), {topic: "earliest"})
    poll_until(lambda: len(member.records) == len(keys), member)
    found = {record.value.decode(): record.partition for record in member.records if record.value is not None}
    assert found == {key: murmur2(key.encode(), 3) for key in keys}


def test_empty_values_are_not_no_values(cluster: Cluster, unique: str, topic: str) -> None:
    producer = cluster.producer()
    producer.send(topic, b"k", None, [], 0, "tombstone")
    send(producer, topic, b"", key=b"k")
    member = Member(cluster.consumer(f"{unique}.g"), {topic: "earliest"})
    poll_until(lambda: len(member.records) == 2, member)
    assert member.values == [None, b""]


@pytest.mark.parametrize(("config", "own"), [({}, True), ({"message.timestamp.type": "LogAppendTime"}, False)])
def test_timestamps_are_the_producers_or_the_brokers(
    cluster: Cluster, unique: str, config: dict[str, str], own: bool
) -> None:
    name, begun = f"{unique}.stamped", cluster.now_ms()
    cluster.create(name, 1, config)
    send(cluster.producer(), name, b"old", timestamp_ms=1_600_000_000_000)
    send(cluster.producer(), name, b"now")
    member = Member(cluster.consumer(f"{unique}.g"), {name: "earliest"})
    poll_until(lambda: len(member.records) == 2, member)
    old, now = (record.timestamp_ms for record in member.records)
    assert (old == 1_600_000_000_000) == own
    assert begun - 2000 <= now <= cluster.now_ms() + 2000


def test_a_record_for_a_topic_that_is_not_there_is_refused_for_now(cluster: Cluster, unique: str) -> None:
    producer = cluster.producer()
    found: list[tuple[object, BrokerError | None]] = []
    try:
        producer.send(f"{unique}.nowhere", b"k", b"v", [], 0, "token")
    except BrokerError as error:
        found.append(("token", error))
    end = time.monotonic() + 60
    while not found and time.monotonic() < end:
        found += producer.poll(0.5)
    [(token, error)] = found
    assert token == "token"
    assert error is not None
    assert error.retryable


@on("record sizes")
def test_a_record_that_is_too_large_is_refused_for_good(cluster: Cluster, unique: str) -> None:
    name = f"{unique}.small"
    cluster.create(name, 1, {"max.message.bytes": "1000"})
    producer = cluster.producer()
    producer.send(name, b"k", Random(1).randbytes(10_000), [], 0, "large")  # nothing that lz4 makes small
    found: list[tuple[object, BrokerError | None]] = []
    end = time.monotonic() + 90
    while not found and time.monotonic() < end:
        found += producer.poll(0.5)
    assert found[0][1] is not None
    assert not found[0][1].retryable


# ── groups ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start", ["earliest", "latest", "time"])
def test_a_group_begins_where_it_says_and_that_is_committed(
    cluster: Cluster, unique: str, topic: str, start: str
) -> None:
    producer = cluster.producer()
    send(producer, topic, b"old", partition=0, timestamp_ms=1_700_000_000_000)
    send(producer, topic, b"newer", partition=0, timestamp_ms=1_700_000_100_000)
    at: Any = datetime.fromtimestamp(1_700_000_050, UTC) if start == "time" else start
    first = cluster.consumer(f"{unique}.g")
    member = Member(first, {topic: at})
    poll_until(lambda: len(member.heard.has) == 3, member)
    first.close()  # nothing was committed by the member itself
    send(producer, topic, b"later", partition=0)
    again = Member(cluster.consumer(f"{unique}.g"), {topic: "latest"})
    poll_until(lambda: b"later" in again.values, again)
    wanted = {"earliest": [b"old", b"newer", b"later"], "latest": [b"later"], "time": [b"newer", b"later"]}
    assert again.values == wanted[start]


def test_a_member_goes_on_where_the_group_has_committed(cluster: Cluster, unique: str, topic: str) -> None:
    send(cluster.producer(), topic, *[b"%d" % number for number in range(10)], partition=1)
    consumer = cluster.consumer(f"{unique}.g")
    member = Member(consumer, {topic: "earliest"})
    poll_until(lambda: len(member.records) == 10, member)
    consumer.commit({(topic, 1): Mark(4)}, wait=True)
    consumer.close()
    again = Member(cluster.consumer(f"{unique}.g"), {topic: "earliest"})
    poll_until(lambda: len(again.records) == 6, again)
    assert again.heard.starts[topic, 1].offset == 4
    assert again.values == [b"%d" % number for number in range(4, 10)]


def test_a_commit_without_waiting_arrives_while_the_member_polls(cluster: Cluster, unique: str, topic: str) -> None:
    send(cluster.producer(), topic, b"a", b"b", b"c", partition=0)
    consumer = cluster.consumer(f"{unique}.g")
    member = Member(consumer, {topic: "earliest"})
    poll_until(lambda: len(member.records) == 3, member)
    consumer.commit({(topic, 0): Mark(3)}, wait=False)
    member.poll()
    consumer.commit({(topic, 1): Mark(0)}, wait=True)  # commits of one member arrive in order
    consumer.close()
    again = Member(cluster.consumer(f"{unique}.g"), {topic: "earliest"})
    poll_until(lambda: len(again.heard.has) == 3, again)
    assert again.heard.starts[topic, 0].offset == 3


def test_groups_do_not_know_of_each_other(cluster: Cluster, unique: str, topic: str) -> None:
    send(cluster.producer(), topic, b"a", b"b", partition=0)
    members = [Member(cluster.consumer(f"{unique}.g{number}"), {topic: "earliest"}) for number in range(2)]
    poll_until(lambda: all(len(member.records) == 2 for member in members), *members)
    assert [member.values for member in members] == [[b"a", b"b"]] * 2


@with_both_protocols
def test_a_second_member_takes_its_share_only_after_the_first_gave_it_up(
    cluster: Cluster, unique: str, topic: str
) -> None:
    send(cluster.producer(), topic, *[b"%d" % number for number in range(30)], key=None)
    consumer = cluster.consumer(f"{unique}.g")
    first = Member(consumer, {topic: "earliest"})
    poll_until(lambda: len(first.heard.has) == 3, first)
    second = Member(cluster.consumer(f"{unique}.g"), {topic: "earliest"})

    def disjoint() -> bool:
        assert not first.heard.has & second.heard.has
        return len(first.heard.has | second.heard.has) == 3 and bool(second.heard.has) and len(first.heard.has) < 3

    poll_until(disjoint, first, second)
    kept = first.heard.has
    assert ("assigned", tuple(sorted(kept))) not in first.heard.told[1:], "what is kept is not assigned anew"
    consumer.close()
    poll_until(lambda: len(second.heard.has) == 3, second)


@with_both_protocols
def test_what_is_committed_while_partitions_are_taken_counts(cluster: Cluster, unique: str, topic: str) -> None:
    for partition in range(3):
        send(cluster.producer(), topic, b"a", b"b", partition=partition)
    consumer = cluster.consumer(f"{unique}.g")
    member = Member(consumer, {topic: "earliest"})
    poll_until(lambda: len(member.records) == 6, member)
    member.heard.on_revoked = lambda: consumer.commit({(topic, p): Mark(2) for p in range(3)}, wait=True)
    consumer.close()
    assert ("revoked", ((topic, 0), (topic, 1), (topic, 2))) in member.heard.told
    again = Member(cluster.consumer(f"{unique}.g"), {topic: "earliest"})
    poll_until(lambda: len(again.heard.has) == 3, again)
    assert set(again.heard.starts.values()) == {Mark(2)}


def test_paused_partitions_wait_and_lose_nothing(cluster: Cluster, unique: str, topic: str) -> None:
    producer, consumer = cluster.producer(), cluster.consumer(f"{unique}.g")
    member = Member(consumer, {topic: "earliest"})
    poll_until(lambda: len(member.heard.has) == 3, member)
    consumer.pause([(topic, 0)])
    for partition in (0, 1):
        send(producer, topic, b"%d-a" % partition, b"%d-b" % partition, partition=partition)
    poll_until(lambda: len(member.records) == 2, member)
    for _ in range(5):
        member.poll()
    assert member.values == [b"1-a", b"1-b"]
    consumer.resume([(topic, 0)])
    poll_until(lambda: len(member.records) == 4, member)
    assert member.values[2:] == [b"0-a", b"0-b"]


def test_at_most_as_many_records_as_asked_for(cluster: Cluster, unique: str, topic: str) -> None:
    send(cluster.producer(), topic, *[b"%d" % number for number in range(20)], partition=0)
    consumer = cluster.consumer(f"{unique}.g")
    member = Member(consumer, {topic: "earliest"})
    found: list[int] = []
    end = time.monotonic() + 90
    while sum(found) < 20 and time.monotonic() < end:
        found.append(len(consumer.poll(3, 0.2)))
    assert sum(found) == 20
    assert max(found) <= 3
    assert member.heard.has


# ── offsets ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_offsets_have_holes_and_only_grow(cluster: Cluster, unique: str, topic: str) -> None:
    producer = cluster.producer()
    send(producer, topic, b"a", partition=0)
    cluster.hole(topic, 0)
    send(producer, topic, b"b", partition=0)
    member = Member(cluster.consumer(f"{unique}.g"), {topic: "earliest"})
    poll_until(lambda: len(member.records) == 2, member)
    assert [record.value for record in member.records] == [b"a", b"b"]
    first, second = (record.offset for record in member.records)
    assert first == 0
    assert second > 1, "what was aborted, its marker, or both, took offsets"


def test_ends_tell_the_next_offset(cluster: Cluster, unique: str, topic: str) -> None:
    send(cluster.producer(), topic, b"a", b"b", partition=2)
    consumer = cluster.consumer(f"{unique}.g")
    member = Member(consumer, {topic: "earliest"})
    poll_until(lambda: consumer.ends([(topic, 2)]) == {(topic, 2): 2}, member)
    poll_until(consumer.reachable, member)


def test_a_committed_offset_that_retention_took_is_an_error_and_not_a_skip(
    cluster: Cluster, unique: str, topic: str
) -> None:
    send(cluster.producer(), topic, b"a", b"b", b"c", partition=0)
    consumer = cluster.consumer(f"{unique}.g")
    member = Member(consumer, {topic: "earliest"})
    poll_until(lambda: len(member.heard.has) == 3, member)
    consumer.commit({(topic, 0): Mark(1)}, wait=True)
    consumer.close()
    cluster.expire(topic, 0, 2)
    again = Member(cluster.consumer(f"{unique}.g"), {topic: "earliest"})
    with pytest.raises(BrokerError, match="not there any more"):
        poll_until(lambda: again.records, again)


def test_retention_that_overtakes_a_waiting_partition_is_an_error_too(
    cluster: Cluster, unique: str, topic: str
) -> None:
    producer, consumer = cluster.producer(), cluster.consumer(f"{unique}.g")
    send(producer, topic, b"a", partition=0)
    member = Member(consumer, {topic: "earliest"})
    poll_until(lambda: member.values == [b"a"], member)
    consumer.pause([(topic, 0)])
    send(producer, topic, b"b", b"c", b"d", partition=0)
    cluster.expire(topic, 0, 3)
    consumer.resume([(topic, 0)])
    with pytest.raises(BrokerError, match="not there any more"):
        poll_until(lambda: len(member.records) > 1, member)
    assert member.values == [b"a"]


def test_a_group_that_has_read_all_loses_nothing_by_retention(cluster: Cluster, unique: str, topic: str) -> None:
    send(cluster.producer(), topic, b"a", b"b", partition=0)
    consumer = cluster.consumer(f"{unique}.g")
    member = Member(consumer, {topic: "earliest"})
    poll_until(lambda: len(member.records) == 2, member)
    consumer.commit({(topic, 0): Mark(2)}, wait=True)
    consumer.close()
    cluster.expire(topic, 0, 2)
    again = Member(cluster.consumer(f"{unique}.g"), {topic: "earliest"})
    poll_until(lambda: len(again.heard.has) == 3, again)
    send(cluster.producer(), topic, b"c", partition=0)
    poll_until(lambda: again.records, again)
    assert again.values == [b"c"]


def test_a_new_partition_begins_at_its_beginning(cluster: Cluster, unique: str, topic: str) -> None:
    member = Member(cluster.consumer(f"{unique}.g"), {topic: "latest"})
    poll_until(lambda: len(member.heard.has) == 3, member)
    cluster.add_partitions(topic, 4)
    send(cluster.producer(), topic, b"first", partition=3)
    poll_until(lambda: member.records, member)
    assert (member.records[0].partition, member.records[0].offset) == (3, 0)


def test_a_missing_topic_is_named_when_the_group_is_joined(cluster: Cluster, unique: str) -> None:
    with pytest.raises(BrokerError, match="nowhere"):
        Member(cluster.consumer(f"{unique}.g"), {f"{unique}.nowhere": "earliest"})
