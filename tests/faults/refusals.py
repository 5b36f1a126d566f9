"""A broker that is there and takes no records: too large, too few replicas, throttled, no topic, no room."""

from __future__ import annotations

import contextlib

from confluent_kafka import KafkaException

from tests.faults.auditor import read
from tests.faults.faults import Fault
from tests.faults.processes import wait
from tests.faults.world import ACCOUNT, MAIL, PARCEL, World

__all__: list[str] = []

_RETRIES = ("bank.jobs.mail.retry.500ms", "bank.jobs.mail.retry.1s", "bank.jobs.mail.dlq", "bank.ledger.dlq")


class _Setting(Fault):
    topics: tuple[str, ...] = ()
    setting: tuple[str, str] = ("", "")

    def inject(self, world: World) -> str:
        name, value = self.setting
        for topic in self.topics:
            world.topic_config(topic, name, value)
        return f"{name}={value} on {', '.join(self.topics)}"

    def heal(self, world: World) -> str:
        for topic in self.topics:
            world.topic_config(topic, self.setting[0], None)
        return ""


class TooLarge(_Setting):
    """Batches are refused for their size, then sent one by one; what is too large alone goes to the relay's DLQ."""

    kind, part, hold_s = "broker refuses large batches", "kafka", (1.0, 3.0)
    topics, setting = (ACCOUNT, MAIL), ("max.message.bytes", "1000")


class TooFewReplicas(_Setting):
    """Topics of events and jobs cannot be written."""

    kind, part, hold_s = "broker has too few replicas: events and jobs", "kafka", (1.0, 4.0)
    topics, setting = (ACCOUNT, MAIL), ("min.insync.replicas", "2")


class RetriesTooFewReplicas(_Setting):
    """Retry topics and DLQs cannot be written: what fails has to wait."""

    kind, part, hold_s = "broker has too few replicas: retries and DLQs", "kafka", (1.0, 4.0)
    topics, setting = _RETRIES, ("min.insync.replicas", "2")


class Throttled(Fault):
    """A quota lets hardly anything through."""

    kind, part, hold_s = "broker throttles by quota", "kafka", (1.0, 3.0)
    often = 1

    def inject(self, world: World) -> str:
        world.admin_tool("kafka.admin.ConfigCommand", *self._words("--add-config", "producer_byte_rate=3000"))
        return "3 kB/s for each client"

    def heal(self, world: World) -> str:
        world.admin_tool("kafka.admin.ConfigCommand", *self._words("--delete-config", "producer_byte_rate"))
        return ""

    def _words(self, how: str, value: str) -> tuple[str, ...]:
        return ("--alter", how, value, "--entity-type", "clients", "--entity-default")


class DiskFull(Fault):
    """The broker's disk runs full: it ends, and comes back with room."""

    kind, part, hold_s = "broker's disk full", "kafka", (0.2, 1.0)
    often = 1

    def inject(self, world: World) -> str:
        how = world.servers.fill_disk()
        ended = wait(lambda: not world.servers.processes("kafka"), 12)
        return f"{how}, the broker {'ended' if ended else 'went on'}"

    def heal(self, world: World) -> str:
        world.servers.empty_disk()
        if world.servers.processes("kafka"):
            world.servers.local.kill("kafka")
        world.servers.local.start("kafka")
        return ""


class TopicRecreated(Fault):
    """A topic that was handled to its end is deleted, written to while it is gone, and made again.

    The records on it are gone with it, so they are read before; all later ones have to come. As whoever recreates a
    topic should, it stops the topic's consumers first: Kafka then forgets their offsets together with the topic.
    """

    kind, part, hold_s = "topic deleted and made again", "kafka", (1.0, 3.0)
    often = 1
    alone = True

    def inject(self, world: World) -> str:
        self.done = False
        if not world.load.hold_parcels():
            return "skipped: the writers did not pause"
        wanted = {row[0] for row in world.sql("SELECT event_id::text FROM faults.ledger WHERE kind = 'parcel'")}

        def handled() -> bool:
            world.handled.update()
            return all(("post", event_id) in world.handled.done for event_id in wanted)

        if not wait(handled, 30):
            return "skipped: parcels were not handled within 30 s"
        for worker in world.workers:
            worker.terminate()
        before = read(world.ends.kafka, [PARCEL], world.lives)
        world.delete_topic(PARCEL)
        # For a moment behind the deletion the broker still acknowledges, and drops with the topic what it took.
        wait(lambda: not list(world.servers.kafka_folder.glob(f"logs/{PARCEL}-[0-9]")), 15)
        world.archive += before
        world.lives += 1
        self.done = True
        world.load.parcels.set()
        return f"{PARCEL} deleted with {len(before)} records, parcels go on"

    def heal(self, world: World) -> str:
        if self.done:
            world.create_topic(PARCEL, 6)
        world.load.parcels.set()
        return "made again" if self.done else ""


class RetryTopicRecreated(Fault):
    """A retry topic is missing when records have to go there: they wait."""

    kind, part, hold_s = "retry topic deleted and made again", "kafka", (1.0, 2.5)

    def inject(self, world: World) -> str:
        # Nothing may be on it that would be gone with it: no failures for a while is not ours to command, so an
        # empty tier is used that records reach only by redrive.
        self.topic = "bank.mirror.retry.0s"
        with contextlib.suppress(KafkaException):
            world.delete_topic(self.topic)
        return f"{self.topic} deleted"

    def heal(self, world: World) -> str:
        world.create_topic(self.topic, 3)
        return "made again"
