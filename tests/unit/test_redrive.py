from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.capture import dead_letter
from pipeline.deadletter import Count, Letter, Place, Selection, State, Summary
from pipeline.errors import BrokerError
from pipeline.failure import Failure
from pipeline.headers import DeadLetter, Origin, RetryState
from pipeline.projector import Scan, project
from pipeline.record import Header, Record
from pipeline.redrive import Destinations, Redrive, discard, plan

DLQ, GROUP, TARGET = "shop.billing.dlq", "shop.billing", "shop.billing.retry.0s"
NOW_MS = 1_700_000_000_000
OPEN = Selection((DLQ,))


def letter(offset: int, *, group: str = GROUP, origin: Origin | None = None) -> Record:
    written: list[Header] = [("id", f"e{offset}".encode()), ("h", b"\0\xff"), ("h", None), ("__pipeline.attempt", b"9")]
    record = Record(DLQ, 0, offset, f"k{offset}".encode(), b"\0raw", written, NOW_MS)
    story = DeadLetter(
        origin or Origin("orders", 1, 100 + offset, NOW_MS - 1), group, 5, Failure("E", ""), died_ms=NOW_MS
    )
    return record._replace(headers=story.headers(record))


class Topic:
    """A DLQ topic."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = {Place(*record[:3]): record for record in records}
        self.first = 0

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return {0: (self.first, max((place.offset + 1 for place in self.records), default=0))}

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Record]:
        return (r for place, r in sorted(self.records.items()) if start <= place.offset < end)

    def fetch(self, places: Iterable[Place]) -> Iterator[Record]:
        return (self.records[place] for place in sorted(places) if place in self.records)


class Table:
    """The states, as the database keeps them."""

    def __init__(self) -> None:
        self.rows: dict[Place, Summary] = {}
        self.states: dict[Place, State] = {}

    def next_offset(self, topic: str, partition: int) -> int:
        return max((place.offset + 1 for place in self.rows), default=0)

    def enter(self, letters: Sequence[Summary]) -> None:
        for one in letters:
            self.rows.setdefault(one.place, one)
            self.states.setdefault(one.place, "open")

    def forget(self, topic: str, partition: int) -> int:
        count = len(self.rows)
        self.rows.clear()
        self.states.clear()
        return count

    def counts(self, selection: Selection) -> list[Count]:
        taken = [place for place in self.rows if self.states[place] in selection.states]
        return [Count(DLQ, None, "E", "f", len(taken))] if taken else []

    @contextmanager
    def claim(self, selection: Selection, after: Place | None, limit: int) -> Iterator[list[Place]]:
        taken = [p for p in sorted(self.rows) if self.states[p] in selection.states and (not after or p > after)]
        yield taken[:limit]

    def mark(self, places: Sequence[Place], state: State) -> None:
        self.states.update(dict.fromkeys(places, state))


class Broker:
    """Takes records, but for those whose keys it refuses; stays silent about others."""

    def __init__(self, refuses: Iterable[bytes] = (), silent: Iterable[bytes] = ()) -> None:
        self.refuses, self.silent = set(refuses), set(silent)
        self.stored: list[tuple[str, bytes | None, bytes | None, list[tuple[str, str | bytes | None]], int]] = []
        self.queue: list[tuple[object, BrokerError | None]] = []

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, str | bytes | None]],
        timestamp_ms: int,
        token: object,
    ) -> None:
        if key in self.silent:
            return
        if key in self.refuses:
            self.queue.append((token, BrokerError("Kafka: too large")))
            return
        self.stored.append((topic, key, value, headers, timestamp_ms))
        self.queue.append((token, None))

    def poll(self, wait_s: float = 0) -> list[tuple[object, BrokerError | None]]:
        found, self.queue = self.queue, []
        return found


class Clock:
    """Goes on by a little with each look, and by what is waited."""

    def __init__(self) -> None:
        self.now, self.waited = 0.0, 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.waited += seconds


def redrive(
    topic: Topic, table: Table | Scan, broker: Broker, *, rate: float | None = None, topics: Iterable[str] = (TARGET,)
) -> tuple[Redrive, Clock]:
    clock = Clock()
    run = Redrive(
        table,
        topic,
        broker,
        groups={DLQ: GROUP},
        topics=frozenset(topics),
        rate=rate,
        clock=clock,
        now_ms=lambda: NOW_MS,
        pause=clock.pause,
    )
    return run, clock


def entered(topic: Topic) -> Table:
    table = Table()
    project([DLQ], topic, table)
    return table


def test_bytes_go_back_as_they_were_with_a_fresh_state_and_the_old_origin() -> None:
    topic, broker = Topic([letter(0)]), Broker()
    redrive(topic, entered(topic), broker)[0].run(OPEN)
    ((target, key, value, headers, timestamp_ms),) = broker.stored
    assert (target, key, value, timestamp_ms) == (TARGET, b"k0", b"\0raw", 0)
    assert headers[:3] == [("id", b"e0"), ("h", b"\0\xff"), ("h", None)]
    record = Record(target, 0, 0, key, value, headers, NOW_MS)  # type: ignore[arg-type]  # our headers are bytes
    state = RetryState.of(record)
    assert (state.attempt, state.due_ms, state.last_error) == (1, NOW_MS, None)
    assert state.origin == Origin("orders", 1, 100, NOW_MS - 1)
    assert not any(name.startswith("__dlq.") for name, _ in headers)


def test_what_spring_added_stays_behind() -> None:
    headers: list[Header] = [("id", b"e0"), ("kafka_dlt-original-topic", b"orders")]
    headers += [(f"kafka_dlt-original-{part}", (7).to_bytes(8, "big")) for part in ("partition", "offset")]
    topic, broker = Topic([Record(DLQ, 0, 0, b"k", b"v", headers, NOW_MS)]), Broker()
    redrive(topic, entered(topic), broker)[0].run(OPEN)
    ((target, _, _, sent, _),) = broker.stored
    assert target == TARGET  # Spring names no group: that of the topic
    assert [name for name, _ in sent if not name.startswith("__pipeline.")] == ["id"]


def test_a_second_redrive_sends_nothing_unless_asked() -> None:
    topic, broker = Topic(letter(n) for n in range(3)), Broker()
    table = entered(topic)
    assert redrive(topic, table, broker)[0].run(OPEN).redriven == 3
    assert redrive(topic, table, broker)[0].run(OPEN).redriven == 0
    again = Selection((DLQ,), ("open", "redriven", "discarded"))
    assert redrive(topic, table, broker)[0].run(again).redriven == 3
    assert len(broker.stored) == 6


def test_only_what_was_acknowledged_is_redriven() -> None:
    topic = Topic(letter(n) for n in range(3))
    table = entered(topic)
    with pytest.raises(BrokerError, match="too large; 2 letters were redriven before"):
        redrive(topic, table, Broker(refuses=[b"k1"]))[0].run(OPEN)
    assert [table.states[place] for place in sorted(table.states)] == ["redriven", "open", "redriven"]


def test_silence_of_the_broker_is_an_error_and_the_letter_stays_open() -> None:
    topic = Topic(letter(n) for n in range(2))
    table = entered(topic)
    with pytest.raises(BrokerError, match="no acknowledgement for 1 records"):
        redrive(topic, table, Broker(silent=[b"k1"]))[0].run(OPEN)
    assert sorted(table.states.values()) == ["open", "redriven"]


def test_a_crash_between_acknowledgement_and_mark_sends_again_and_loses_nothing() -> None:
    class Crash(Exception):
        pass

    class Crashing(Table):
        def mark(self, places: Sequence[Place], state: State) -> None:
            raise Crash

    topic, broker = Topic([letter(0)]), Broker()
    table = Crashing()
    project([DLQ], topic, table)
    with pytest.raises(Crash):
        redrive(topic, table, broker)[0].run(OPEN)
    assert table.states == {Place(DLQ, 0, 0): "open"}
    Table.mark(table, [], "open")
    again = Table()
    again.rows, again.states = table.rows, table.states
    assert redrive(topic, again, broker)[0].run(OPEN).redriven == 1
    assert len(broker.stored) == 2


def test_letters_that_cannot_go_back_are_left_with_a_reason() -> None:
    lost = Origin("", -1, -1, 0)
    topic = Topic([letter(0, origin=lost), letter(1, group="other"), letter(2), letter(3)])
    table = entered(topic)
    del topic.records[Place(DLQ, 0, 3)]  # retention took it
    outcome = redrive(topic, table, Broker())[0].run(OPEN)
    assert outcome.redriven == 1
    assert dict(outcome.kept) == {
        "its headers do not say where it came from": 1,
        "topic other.retry.0s does not exist (pipeline topics apply)": 1,
        "its record is no longer on the topic": 1,
    }
    assert sorted(table.states.values()) == ["open", "open", "open", "redriven"]


@given(letters=st.integers(0, 1200), limit=st.one_of(st.none(), st.integers(1, 1300)))
def test_each_letter_goes_once_oldest_first_and_no_more_than_the_limit(letters: int, limit: int | None) -> None:
    topic, broker = Topic(letter(n) for n in range(letters)), Broker()
    outcome = redrive(topic, entered(topic), broker)[0].run(OPEN, limit)
    wanted = letters if limit is None else min(letters, limit)
    assert outcome.redriven == wanted
    assert [key for _, key, *_ in broker.stored] == [f"k{n}".encode() for n in range(wanted)]


def test_the_rate_is_kept() -> None:
    topic, broker = Topic(letter(n) for n in range(40)), Broker()
    _, clock = (pair := redrive(topic, entered(topic), broker, rate=10))
    pair[0].run(OPEN)
    assert clock.now >= 4.0
    assert clock.waited > 0


def test_the_plan_names_targets_what_cannot_go_and_what_the_limit_leaves() -> None:
    topic = Topic([*(letter(n) for n in range(3)), letter(3, group="other"), letter(4)])
    table = entered(topic)
    del topic.records[Place(DLQ, 0, 2)]
    ways = Destinations({DLQ: GROUP}, frozenset([TARGET]))
    made = plan(OPEN, table, 4, archive=topic, destinations=ways)
    assert (made.letters, made.examined, made.targets) == (4, 4, {TARGET: 2})
    assert made.kept == {
        "topic other.retry.0s does not exist (pipeline topics apply)": 1,
        "its record is no longer on the topic": 1,
    }
    assert plan(OPEN, table, None).letters == 5


def captured(offset: int, topic: str, *, kind: str = "Unroutable", with_value: bool = True) -> Record:
    row = (topic, f"k{offset}".encode(), b"\0raw", [("id", f"e{offset}")], NOW_MS - 1, -1)
    _, key, value, headers, at_ms, _ = dead_letter(
        DLQ, row, kind=kind, message="no", lsn=1 << 32, now_ms=NOW_MS, with_value=with_value
    )
    sent = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers]
    return Record(DLQ, 0, offset, key, value, sent, at_ms)


def test_what_the_capture_side_could_not_publish_goes_to_its_own_topic_with_its_first_time_in_a_header() -> None:
    topic, broker = Topic([captured(0, "orders")]), Broker()
    outcome = redrive(topic, entered(topic), broker, topics=["orders"])[0].run(OPEN)
    assert (outcome.redriven, dict(outcome.kept)) == (1, {})
    assert broker.stored == [
        ("orders", b"k0", b"\0raw", [("id", b"e0"), ("__pipeline.origin.timestamp.ms", str(NOW_MS - 1))], 0)
    ]
    assert Letter.of(topic.records[Place(DLQ, 0, 0)]).flaws == ()


def test_rows_without_a_possible_topic_or_value_stay_dead_and_say_so() -> None:
    letters = (
        captured(0, "not a topic!"), captured(1, "orders", with_value=False), captured(2, "orders", kind="Unencoded"),
    )  # fmt: skip
    topic, broker = Topic(letters), Broker()
    outcome = redrive(topic, entered(topic), broker, topics=["orders"])[0].run(OPEN)
    assert dict(outcome.kept) == {
        "its row names no possible topic: correct the row, and publish it anew": 1,
        "its value was too large for the DLQ: it is in pipeline.refused_row, see docs/dead-letters.md": 1,
        "its value was never encoded: correct the row, or the schema, and publish the row anew": 1,
    }
    assert broker.stored == []
    assert Letter.of(topic.records[Place(DLQ, 0, 1)]).flaws == ("its value of 4 bytes is not here",)


def test_discarded_letters_are_not_redriven() -> None:
    topic, broker = Topic(letter(n) for n in range(3)), Broker()
    table = entered(topic)
    assert discard(OPEN, table, 2) == 2
    assert redrive(topic, table, broker)[0].run(OPEN).redriven == 1
    assert [key for _, key, *_ in broker.stored] == [b"k2"]


def test_projection_goes_on_where_it_was_and_keeps_states() -> None:
    topic = Topic(letter(n) for n in range(2))
    table = entered(topic)
    table.mark([Place(DLQ, 0, 0)], "redriven")
    topic.records[Place(DLQ, 0, 2)] = letter(2)
    assert project([DLQ], topic, table) == {}
    assert [table.states[place] for place in sorted(table.states)] == ["redriven", "open", "open"]


def test_letters_of_a_topic_that_was_made_anew_are_forgotten() -> None:
    table = entered(Topic(letter(n) for n in range(5)))
    assert project([DLQ], Topic([letter(0)]), table) == {DLQ: 5}
    assert table.states == {Place(DLQ, 0, 0): "open"}


def test_without_a_database_states_are_unknown_and_letters_can_be_paged_and_sent() -> None:
    topic, broker = Topic(letter(n) for n in range(5)), Broker()
    scan = Scan([DLQ], topic)
    first = scan.page(OPEN, None, 3)
    assert [(one.place.offset, one.state) for one in first] == [(4, "unknown"), (3, "unknown"), (2, "unknown")]
    assert [one.place.offset for one in scan.page(OPEN, first[-1].place, 3)] == [1, 0]
    assert redrive(topic, scan, broker)[0].run(OPEN, 4).redriven == 4
    assert scan.counts(OPEN)[0].letters == 5


def test_a_letter_of_a_shared_dlq_goes_to_the_group_that_it_names() -> None:
    topic, broker = Topic([letter(0, group="other")]), Broker()
    redrive(topic, entered(topic), broker, topics=["other.retry.0s"])[0].run(OPEN)
    assert broker.stored[0][0] == "other.retry.0s"
    assert Letter.of(topic.records[Place(DLQ, 0, 0)]).story.group == "other"
