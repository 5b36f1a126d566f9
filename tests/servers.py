"""Running servers in, what one test needs of them out: a database, topics, an environment for the CLI.

Every test has a database of its own, cloned from a migrated template, and its own prefix for topics and groups.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic
from psycopg import conninfo, sql

from pipeline.config import Settings
from pipeline.local import Endpoints

DROP_S = 60.0


@dataclass(frozen=True, slots=True)
class Database:
    """One database. ``dsn`` is a libpq URI or key/value string."""

    name: str
    dsn: str


class Topics:
    """Creates topics; what a test creates is waited for."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.admin = AdminClient({"bootstrap.servers": bootstrap_servers})

    def create(
        self, *names: str, partitions: int = 1, config: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> None:
        """Create topics and wait until the broker lists all their partitions with a leader."""
        new = [NewTopic(name, partitions, 1, config=dict(config or {})) for name in names]
        for done in self.admin.create_topics(new).values():
            done.result(timeout_s)
        deadline = time.monotonic() + timeout_s
        while not all(self._has_leaders(name, partitions) for name in names):
            if time.monotonic() > deadline:
                raise AssertionError(f"no leaders for {names} within {timeout_s} s")

    def names(self, prefix: str = "") -> list[str]:
        """List the topics that begin with ``prefix``."""
        return sorted(name for name in self.admin.list_topics(timeout=60).topics if name.startswith(prefix))

    def config(self, name: str, setting: str) -> str | None:
        """Return a topic's setting."""
        (asked,) = self.admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, name)]).values()
        value = asked.result(60)[setting].value
        return None if value is None else str(value)

    def set_config(self, name: str, setting: str, value: str) -> None:
        """Change a topic's setting."""
        entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
        wanted = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry])
        for done in self.admin.incremental_alter_configs([wanted]).values():
            done.result(60)

    def delete(self, names: Iterable[str], timeout_s: float = 60) -> None:
        """Delete topics; it is no error when somebody did before."""
        wanted = list(names)
        for done in self.admin.delete_topics(wanted).values() if wanted else ():
            try:
                done.result(timeout_s)
            except KafkaException as error:
                if error.args[0].name() != "UNKNOWN_TOPIC_OR_PART":
                    raise

    def _has_leaders(self, name: str, partitions: int) -> bool:
        found = self.admin.list_topics(name, timeout=60).topics[name].partitions
        return len(found) == partitions and all(partition.leader >= 0 for partition in found.values())


def external_endpoints() -> Endpoints:
    """Return the servers that the environment names. Raises ValueError naming what is missing."""
    settings = Settings.load()
    needed = {
        "PIPELINE_POSTGRES__DSN": settings.postgres.dsn,
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "PIPELINE_REGISTRY__URL": settings.registry.url,
    }
    missing = [name for name, value in needed.items() if not value]
    if missing or settings.postgres.dsn is None:
        raise ValueError(f"--servers=external needs {', '.join(missing)}")
    password = settings.registry.password
    return Endpoints(
        postgres_dsn=settings.postgres.dsn.get_secret_value(),
        kafka=settings.kafka.bootstrap_servers or "",
        registry=settings.registry.url or "",
        registry_username=settings.registry.username,
        registry_password=password.get_secret_value() if password else None,
        connect=settings.connect.url.get_secret_value() if settings.connect.url else None,
    )


def environment(endpoints: Endpoints, database: Database | None = None) -> dict[str, str]:
    """Return our environment with the settings of these servers, for a subprocess that runs the CLI."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    settings = {
        "PIPELINE_POSTGRES__DSN": database.dsn if database else endpoints.postgres_dsn,
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": endpoints.kafka,
        "PIPELINE_REGISTRY__URL": endpoints.registry,
        "PIPELINE_REGISTRY__USERNAME": endpoints.registry_username,
        "PIPELINE_REGISTRY__PASSWORD": endpoints.registry_password,
        "PIPELINE_CONNECT__URL": endpoints.connect,
    }
    return ours | {name: value for name, value in settings.items() if value}


def registry_client_config(endpoints: Endpoints) -> dict[str, str]:
    """Return the settings of confluent-kafka's SchemaRegistryClient."""
    config = {"url": endpoints.registry}
    if endpoints.registry_username:
        config["basic.auth.user.info"] = f"{endpoints.registry_username}:{endpoints.registry_password}"
    return config


@contextmanager
def migrated_template(admin_dsn: str) -> Iterator[str]:
    """Give the name of a database in which all migrations were run once."""
    from pipeline.postgres.migrations import migrate

    with new_database(admin_dsn) as template:
        with psycopg.connect(template.dsn, autocommit=True) as connection:
            migrate(connection)
        yield template.name


@contextmanager
def new_database(admin_dsn: str, template: str = "template1") -> Iterator[Database]:
    """Give a fresh copy of a template; drop it at the end, with its slots and whoever is still connected."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    try:
        yield Database(name, _with_dbname(admin_dsn, name))
    finally:
        with psycopg.connect(admin_dsn, autocommit=True) as connection:
            _drop(connection, name)


def _drop(connection: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    deadline = time.monotonic() + DROP_S
    while True:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = %s AND active", (name,)
        )
        try:
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", (name,)
            )
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
            # A walsender that is ending still holds its slot for a moment.
            if time.monotonic() > deadline:
                raise
        else:
            return


def _with_dbname(dsn: str, name: str) -> str:
    if "://" not in dsn:
        return conninfo.make_conninfo(dsn, dbname=name)
    head, question, options = dsn.partition("?")
    scheme, _, rest = head.partition("://")
    server = rest.partition("/")[0]
    return f"{scheme}://{server}/{name}{question}{options}"
