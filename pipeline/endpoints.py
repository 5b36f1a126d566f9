"""Settings in, addresses of the servers out: those that are set, else those of the local stack.

The local stack is asked only for what is not set, and only where its package is installed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pipeline.config import Settings
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.local.stack import Endpoints

__all__ = ["RegistryAddress", "Resolved", "kafka_options", "libpq_environment", "postgres_dsn", "resolve"]


@dataclass(frozen=True, slots=True)
class RegistryAddress:
    """The registry's URL, which holds no password and may be printed, and the sign-in."""

    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where everything is. ``kafka`` holds librdkafka settings, ``bootstrap.servers`` among them."""

    postgres_dsn: str = field(repr=False)
    kafka: dict[str, str] = field(repr=False)
    registry: RegistryAddress
    connect: str | None = field(repr=False)


def resolve(settings: Settings) -> Resolved:
    """Return all addresses. Raises ConfigError naming the first setting that is missing."""
    return Resolved(postgres_dsn(settings), kafka_options(settings), registry_address(settings), connect_url(settings))


def postgres_dsn(settings: Settings) -> str:
    """Return the database's DSN. Raises ConfigError when there is none."""
    if settings.postgres.dsn:
        dsn = settings.postgres.dsn.get_secret_value()
        try:
            conninfo_to_dict(dsn)
        except psycopg.ProgrammingError:  # its text quotes the DSN, password included
            raise ConfigError(
                "PIPELINE_POSTGRES__DSN cannot be read as a DSN",
                remedy="postgresql://USER:PASSWORD@HOST:PORT/DATABASE, special characters percent-encoded",
            ) from None
        return dsn
    return _local(settings, "PIPELINE_POSTGRES__DSN").postgres_dsn


def kafka_options(settings: Settings) -> dict[str, str]:
    """Return librdkafka's settings. Raises ConfigError when there is no broker."""
    servers = settings.kafka.bootstrap_servers or _local(settings, "PIPELINE_KAFKA__BOOTSTRAP_SERVERS").kafka
    options = {name: value.get_secret_value() for name, value in settings.kafka.options.items()}
    return {"bootstrap.servers": servers, **options}


def registry_address(settings: Settings) -> RegistryAddress:
    """Return the registry's address. Raises ConfigError when there is none."""
    registry = settings.registry
    if registry.url:
        password = registry.password.get_secret_value() if registry.password else None
        url, user, secret = _signed_in(registry.url)
        return RegistryAddress(url, registry.username or user, password or secret)
    local = _local(settings, "PIPELINE_REGISTRY__URL")
    return RegistryAddress(local.registry, local.registry_username, local.registry_password)


def connect_url(settings: Settings) -> str | None:
    """Return Kafka Connect's URL; None where there is none."""
    if settings.connect.url:
        return settings.connect.url.get_secret_value()
    local = _running(settings)
    return local.connect if local else None


def libpq_environment(dsn: str) -> dict[str, str]:
    """Return a DSN as libpq's environment variables (PGHOST …), which connector files refer to."""
    parts = conninfo_to_dict(dsn)
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
        "sslmode": "PGSSLMODE",
    }
    return {names[key]: str(value) for key, value in parts.items() if key in names and value is not None}


def _signed_in(url: str) -> tuple[str, str | None, str | None]:
    """Part a URL from user and password in it, which messages must not quote. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        user, secret = parts.username, parts.password
    except ValueError:
        raise ConfigError("PIPELINE_REGISTRY__URL is no URL", remedy="http://HOST:8081") from None
    if user is None and secret is None:
        return url, None, None
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare, unquote(user or ""), None if secret is None else unquote(secret)


def _local(settings: Settings, name: str) -> Endpoints:
    found = _running(settings)
    if found is None:
        raise ConfigError(
            f"{name} is not set, and no local stack runs in {settings.data_dir}", remedy=f"set {name}, or: pipeline up"
        )
    return found


def _running(settings: Settings) -> Endpoints | None:
    try:
        from pipeline.local.stack import LocalStack  # an extra: not in the small core
    except ImportError:
        return None
    return LocalStack(settings.data_dir).endpoints()
