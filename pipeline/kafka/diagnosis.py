"""What a connector publishes in, what of the broker and its topics is in the way, and how to mend it, out.

Only looks: no topic is made, no record written. So a broker's clock that is behind is not seen, one that is ahead is,
by the records that it has stamped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.errors import BrokerError
from pipeline.finding import Finding, Level
from pipeline.kafka.admin import Copies, Topics
from pipeline.kafka.errors import Denied
from pipeline.topics import is_topic

__all__ = ["Published", "examine"]

_MOST_TOPICS = 200
_SKEW_S = 2.0
_APPEND = "LogAppendTime"


@dataclass(frozen=True, slots=True)
class Published:
    """What a connector sends: topic → bytes of its largest record. ``dead_letters`` is its DLQ.

    ``unpublished_s`` is the age of the oldest row that is still to be sent, None where it is not known; ``limit_bytes``
    is what its own producer takes.
    """

    dead_letters: str
    topics: Mapping[str, int] = field(default_factory=dict)
    unpublished_s: float | None = None
    limit_bytes: int | None = None


def examine(topics: Topics, published: Published, *, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Yield what was found, first the broker. Raises BrokerError."""
    there = topics.partitions()
    yield _judged("broker", "ok", f"answers, {len(there)} topics")
    for name in [name for name in published.topics if not is_topic(name)][:_MOST_TOPICS]:
        text = "no name that Kafka allows: its rows are dead letters"
        fix = "correct what writes its rows, or route.topic.regex and route.topic.replacement in FILE"
        yield _judged(f"topic {name!r}", "warning", text, fix)
    events = dict([one for one in published.topics.items() if is_topic(one[0])][:_MOST_TOPICS])
    configs = topics.configs(name for name in (*events, published.dead_letters) if name in there)
    copies = topics.copies()
    before = len(events)
    good = 0
    for name, size in events.items():
        if name not in there:
            fix = f"pipeline topics apply MODULE:APP; or kafka-topics --create --topic {name}"
            missing = _judged(f"topic {name}", "problem", "is not there: the relay waits for it", fix)
            yield _hidden(topics, name) or missing
            continue
        found = [*_event_topic(name, size, configs[name], published), *_copies(name, configs[name], copies[name])]
        good += not found
        yield from found
    if published.limit_bytes is not None and (largest := max(events.values(), default=0)) > published.limit_bytes:
        fix = f"set producer.override.max.request.size={_room(largest)} in the connector file"
        yield _judged("producer", "problem", f"takes {published.limit_bytes} bytes, a row has {largest}", fix)
    if before:
        yield _judged("event topics", "ok", f"{good} of {before} that rows name are as they should be")
    yield from _dead_letters(topics, published, there, configs, copies, max(events.values(), default=0))
    yield from _clock(topics, {name: there[name] for name in configs if _stamps(configs[name])}, now)


def _event_topic(name: str, size: int, config: Mapping[str, str], published: Published) -> Iterator[Finding]:
    check, longest = f"topic {name}", int(config.get("max.message.bytes", "0"))
    if size > longest:
        text = f"takes {longest} bytes, a row has {size}: it would be a dead letter"
        yield _judged(check, "problem", text, _alter(name, "max.message.bytes", str(_room(size))))
    if "compact" in (policy := config.get("cleanup.policy", "")):
        text = f"cleanup.policy={policy}: of each key only the newest event is kept"
        yield _judged(check, "warning", text, _alter(name, "cleanup.policy", "delete"))
    if _stamps(config):
        text = f"message.timestamp.type={_APPEND}: the time of the insert is lost, and end-to-end latency with it"
        yield _judged(check, "warning", text, _alter(name, "message.timestamp.type", "CreateTime"))
    age, retention_s = published.unpublished_s, int(config.get("retention.ms", "-1")) / 1000
    if age is not None and 0 <= retention_s < 2 * age:
        text = f"keeps events {retention_s:.0f} s, and a row that is not published yet is {age:.0f} s old"
        longer = _alter(name, "retention.ms", str(int(4 * age * 1000)))
        yield _judged(check, "problem" if retention_s < age else "warning", text, longer)
    if config.get("unclean.leader.election.enable") == "true":
        text = "unclean.leader.election.enable=true: acknowledged events can be lost"
        yield _judged(check, "warning", text, _alter(name, "unclean.leader.election.enable", "false"))


def _copies(name: str, config: Mapping[str, str], copies: Copies) -> Iterator[Finding]:
    check, needed = f"topic {name}", int(config.get("min.insync.replicas", "1"))
    lower = _alter(name, "min.insync.replicas", str(max(copies.replicas - 1, 1)))
    if copies.in_sync < needed:
        text = f"min.insync.replicas={needed}, {copies.in_sync} of {copies.replicas} are: it takes no record"
        fix = lower if copies.replicas < needed else "start the brokers that are away"
        yield _judged(check, "problem", text, fix)
    elif copies.replicas > 1 and copies.replicas == needed:
        text = f"min.insync.replicas={needed} of {copies.replicas}: it takes no record while one broker is away"
        yield _judged(check, "warning", text, lower)
    elif copies.replicas == 1 and copies.brokers > 1:
        text = f"one copy in a cluster of {copies.brokers}: a broker that is lost takes its events along"
        yield _judged(check, "warning", text, f"kafka-reassign-partitions, to 3 replicas of {name}")


def _hidden(topics: Topics, name: str) -> Finding | None:
    """Tell of a topic that is not listed whether this user may not see it."""
    try:
        topics.look_for([name])
    except Denied as error:
        return _judged(f"topic {name}", "problem", error.what, error.remedy)
    except BrokerError:  # that it is not listed is told anyhow
        return None
    return None


def _dead_letters(
    topics: Topics,
    published: Published,
    there: Mapping[str, int],
    configs: Mapping[str, Mapping[str, str]],
    copies: Mapping[str, Copies],
    largest: int,
) -> Iterator[Finding]:
    name = published.dead_letters
    check = f"topic {name}"
    if name not in there:
        fix = f"kafka-topics --create --topic {name} --config retention.ms=-1 --config message.timestamp.type={_APPEND}"
        missing = _judged(check, "warning", "is not there; pipeline connector run makes it", fix)
        yield _hidden(topics, name) or missing
        return
    config, found = configs[name], list(_copies(name, configs[name], copies[name]))
    for key, wanted in (("retention.ms", "-1"), ("message.timestamp.type", _APPEND), ("cleanup.policy", "delete")):
        if config.get(key) != wanted:
            found.append(_judged(check, "warning", f"{key}={config.get(key)}", _alter(name, key, wanted)))
    if int(config.get("max.message.bytes", "0")) < largest:
        text = (
            f"takes {config['max.message.bytes']} bytes, a row has {largest}: its letter would be kept in the database"
        )
        found.append(_judged(check, "warning", text, _alter(name, "max.message.bytes", str(_room(largest)))))
    yield from found or [_judged(check, "ok", "keeps its letters")]


def _clock(topics: Topics, stamped: Mapping[str, int], now: Callable[[], float]) -> Iterator[Finding]:
    newest = max(topics.newest(stamped).values(), default=0.0)
    ahead = newest - now()
    if ahead > _SKEW_S:
        text = f"{ahead:.1f} s ahead of this machine's"
        yield _judged("clock", "warning", text, "let both follow the same NTP servers")


def _stamps(config: Mapping[str, str]) -> bool:
    return config.get("message.timestamp.type") == _APPEND


def _room(size: int) -> int:
    """A limit with room for rows that are somewhat larger: the next power of two above it, and as much again."""
    return int(1 << (size.bit_length() + 1))


def _alter(name: str, key: str, value: str) -> str:
    return f"kafka-configs --alter --entity-type topics --entity-name {name} --add-config {key}={value}"


def _judged(check: str, level: Level, found: str, fix: str = "") -> Finding:
    return Finding("kafka", check, level, found, fix)
