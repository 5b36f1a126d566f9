"""Settings and a choice of DLQ topics in; their letters, and what is done with them, out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from pipeline import redrive
from pipeline.app import Pipeline
from pipeline.config import Settings
from pipeline.deadletter import STATES, Letter, Place, Selection, State, Summary
from pipeline.endpoints import kafka_options, registry_address
from pipeline.errors import BrokerError, ConfigError, PipelineError
from pipeline.event import Message
from pipeline.kafka.producer import AckProducer
from pipeline.kafka.reader import TopicReader
from pipeline.payload import Payload, look
from pipeline.postgres.dead_letters import DeadLetterTable
from pipeline.projector import Scan, project
from pipeline.registry.subjects import Subjects
from pipeline.runtime.database import connect
from pipeline.topics import dead_letters

__all__ = ["Letters", "Shown", "open_letters", "sources"]


@dataclass(frozen=True, slots=True)
class Shown:
    """One letter in full. ``alike`` counts the letters of its topic that died of the same."""

    letter: Letter
    state: State
    payload: Payload
    alike: int


def sources(
    settings: Settings, app: Pipeline | None = None, group: str | None = None, topic: str | None = None
) -> dict[str, str | None]:
    """Return the DLQ topics that are meant, each with its group; None where only its letters know.

    Of an application: all its groups', or that of ``group``, by its short or full name. Without one: that of a full
    group name, a topic, or of all topics that end with ``.dlq``. Raises ConfigError for a group it does not have.
    """
    if topic is not None:
        return {topic: group}
    if app is not None:
        groups = app.groups
        if group is None:
            return {one.dlq: name for name, one in groups.items()}
        names = [name for name in (group, f"{app.names.prefix}{app.names.app}.{group}") if name in groups]
        if not names:
            raise ConfigError(f"{app.names.app} has no group {group!r}", remedy=f"its groups: {', '.join(groups)}")
        return {groups[names[0]].dlq: names[0]}
    if group is not None:
        return {dead_letters(group): group}
    with _reader(settings) as reader:
        ending = dead_letters("")
        return {name: None for name in sorted(reader.topics()) if name.endswith(ending)}


class Letters:
    """The letters of some DLQ topics. Made by ``open_letters``."""

    def __init__(
        self,
        settings: Settings,
        groups: Mapping[str, str | None],
        reader: TopicReader,
        states: DeadLetterTable | Scan,
        forgotten: Mapping[str, int],
    ) -> None:
        self._settings = settings
        self._groups = groups
        self._reader = reader
        self._states = states
        self.forgotten = forgotten

    def page(self, selection: Selection, after: Place | None, limit: int) -> list[Summary]:
        """Return letters, the newest of a partition first, from after ``after``."""
        return self._states.page(selection, after, limit)

    def plan(self, selection: Selection, limit: int | None, *, destinations: bool = False) -> redrive.Plan:
        """Say what a redrive or discard would take, and with ``destinations`` where it would go."""
        if not destinations:
            return redrive.plan(selection, self._states, limit)
        found = redrive.Destinations(self._groups, self._reader.topics())
        return redrive.plan(selection, self._states, limit, archive=self._reader, destinations=found)

    def redrive(
        self, selection: Selection, limit: int | None, rate: float | None, progress: Callable[[int], None]
    ) -> redrive.Outcome:
        """Send letters back. Raises BrokerError, with what was done until then kept."""
        trouble: list[PipelineError] = []
        producer = AckProducer(kafka_options(self._settings), on_error=trouble.append)
        try:
            run = redrive.Redrive(
                self._states,
                self._reader,
                producer,
                groups=self._groups,
                topics=self._reader.topics(),
                rate=rate,
                clock=time.monotonic,
                now_ms=lambda: time.time_ns() // 1_000_000,
                pause=time.sleep,
                progress=progress,
            )
            return run.run(selection, limit)
        finally:
            producer.close()

    def discard(self, selection: Selection, limit: int | None) -> int:
        """Mark letters as discarded and return how many."""
        return redrive.discard(selection, self._states, limit)

    def show(self, letter: str, app: Pipeline | None, *, reveal: bool) -> list[Shown]:
        """Return the letters at a place or with an event id, decoded. Raises ConfigError where there is none."""
        topics = tuple(self._groups)
        if "@" in letter:
            places = [Place.parse(letter)]
        else:
            chosen = Selection(topics, STATES, event_ids=(letter,))
            places = [one.place for one in self._states.page(chosen, None, 100)]
        models = {model.message_type.name: model for model in app.messages} if app else {}
        shown = [self._shown(Letter.of(record), models, reveal=reveal) for record in self._reader.fetch(places)]
        if not shown:
            where = ", ".join(topics) or "no topic that ends with .dlq"
            raise ConfigError(f"no dead letter {letter} in {where}", remedy="pipeline dlq list --state all shows them")
        return shown

    def _shown(self, letter: Letter, models: Mapping[str, type[Message]], *, reveal: bool) -> Shown:
        topics = (letter.place.topic,)
        found = self._states.page(Selection(topics, STATES, places=(letter.place,)), None, 1)
        alike = sum(c.letters for c in self._states.counts(Selection(topics, STATES, error=letter.fingerprint)))
        schemas = _LateSubjects(self._settings)
        try:
            payload = look(letter.record.value, schemas, model=models.get(letter.type or ""), reveal=reveal)
        except PipelineError as error:  # all else of the letter can be seen without the registry
            payload = Payload(None, None, None, problem=str(error))
        return Shown(letter, found[0].state if found else "unknown", payload, alike)


class _LateSubjects:
    """The registry, connected to only when a schema is wanted: JSON needs none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def text(self, schema_id: int) -> str:
        address = registry_address(self._settings)
        with closing(Subjects(address.url, address.username, address.password)) as subjects:
            return subjects.text(schema_id)


@contextmanager
def open_letters(settings: Settings, groups: Mapping[str, str | None], *, database: bool = True) -> Iterator[Letters]:
    """Give the letters of topics, as they are now: what is new on the topics is entered first.

    Without ``database`` the topics are read whole, and the letters' states are unknown.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(_reader(settings))
        _check_topics(groups, reader)
        if not database:
            yield Letters(settings, groups, reader, Scan(groups, reader), {})
            return
        table = DeadLetterTable(stack.enter_context(connect(settings)))
        yield Letters(settings, groups, reader, table, project(groups, reader, table))


def _check_topics(groups: Mapping[str, str | None], reader: TopicReader) -> None:
    known = reader.topics()
    missing = sorted(set(groups) - known)
    if missing:
        others = ", ".join(sorted(name for name in known if name.endswith(dead_letters("")))) or "none"
        raise BrokerError(
            f"there is no topic {', '.join(missing)}",
            remedy=f"pipeline topics apply MODULE:APP makes it; topics that end with .dlq: {others}",
        )


@contextmanager
def _reader(settings: Settings) -> Iterator[TopicReader]:
    reader = TopicReader(kafka_options(settings))
    try:
        yield reader
    finally:
        reader.close()
