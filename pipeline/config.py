"""The environment in, one frozen tree of settings out.

The only module that reads the environment. Unknown names under ``PIPELINE_`` are errors, secrets never print.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from pipeline.errors import ConfigError
from pipeline.subject import DEFAULT_STRATEGY, SubjectStrategy

__all__ = ["ConnectSettings", "KafkaSettings", "PostgresSettings", "RegistrySettings", "Settings"]

PREFIX = "PIPELINE_"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class PostgresSettings(_Section):
    """The application's database. ``dsn`` is a libpq URI or key/value string; unset means the local stack's."""

    dsn: SecretStr | None = None


class KafkaSettings(_Section):
    """The broker. ``options`` are librdkafka settings that are passed on as they are (TLS, SASL …)."""

    bootstrap_servers: str | None = None
    options: dict[str, SecretStr] = Field(default_factory=dict)
    replication_factor: int = Field(default=-1, ge=-1, description="of topics that are created; -1: broker's default")


class RegistrySettings(_Section):
    """The schema registry (Confluent's API; for Apicurio its ``/apis/ccompat/v7``)."""

    url: str | None = None
    username: str | None = None
    password: SecretStr | None = None
    subject_strategy: SubjectStrategy = Field(default=DEFAULT_STRATEGY, description="which subject a schema has")


class ConnectSettings(_Section):
    """Kafka Connect's REST API. ``url`` may hold a password."""

    url: SecretStr | None = None


class Settings(BaseSettings):
    """All settings. From ``PIPELINE_…`` in the environment, ``__`` between the levels."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", hide_input_in_errors=True
    )

    postgres: PostgresSettings = PostgresSettings()
    kafka: KafkaSettings = KafkaSettings()
    registry: RegistrySettings = RegistrySettings()
    connect: ConnectSettings = ConnectSettings()
    data_dir: Path = Field(default=Path(".pipeline"), description="where the local stack keeps its state")
    topic_prefix: str = Field(
        default="", pattern=r"^([a-z0-9-]{1,60}\.)?$", description="before all names, e.g. 'staging.'"
    )

    @classmethod
    def load(cls) -> Self:
        """Read the environment. Raises ConfigError for an unknown name or a value that does not fit."""
        for name in os.environ:
            if name.startswith(PREFIX) and name.removeprefix(PREFIX).split("__")[0].lower() not in cls.model_fields:
                known = ", ".join(sorted(PREFIX + field.upper() for field in cls.model_fields))
                raise ConfigError(f"environment: unknown setting {name}", remedy=f"remove it; known are: {known}")
        try:
            return cls()
        except SettingsError as error:  # JSON is expected where a setting has a structure
            field = str(error).split('"')[1] if '"' in str(error) else "?"
            raise ConfigError(
                f"environment: {PREFIX}{field.upper()}…: {type(error.__cause__).__name__}: it is not JSON",
                remedy="""write it as PIPELINE_KAFKA__OPTIONS='{"security.protocol": "SSL"}'""",
            ) from None
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = PREFIX + "__".join(str(part).upper() for part in first["loc"])
            raise ConfigError(f"environment: {where}: {first['msg']}", remedy="correct or unset it") from None
