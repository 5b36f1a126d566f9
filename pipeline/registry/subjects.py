"""Subjects and exact schema texts in, ids, versions and verdicts of the registry out.

No answer is trusted to be about the text that was asked: registries find a schema by a
normalised form (Apicurio leaves ``doc`` out of it) and echo the question.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from pipeline.errors import SchemaError
from pipeline.registry.errors import FAILURES, NOT_FOUND, translated

__all__ = ["Subjects"]

T = TypeVar("T")
_TIMEOUT_S = 10.0
_ATTEMPTS = 2


class Subjects:
    """The registry's subjects. Every call raises SchemaError, retryable while the registry cannot be asked."""

    def __init__(self, url: str, username: str | None = None, password: str | None = None) -> None:
        options: dict[str, object] = {"url": url, "timeout": _TIMEOUT_S, "max.retries": _ATTEMPTS - 1}
        if username is not None:
            options["basic.auth.user.info"] = f"{username}:{password or ''}"
        try:
            self._client = SchemaRegistryClient(options)
        except (ValueError, TypeError) as error:
            raise SchemaError(f"registry: {error}", remedy="correct PIPELINE_REGISTRY__URL and its user") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def names(self) -> list[str]:
        """Return all subjects, sorted."""
        return sorted(self._ask("list subjects", self._client.get_subjects))

    def versions(self, subject: str) -> list[int]:
        """Return the version numbers of a subject, lowest first; none where it is not there."""
        return sorted(self._find(f"versions of {subject}", lambda: self._client.get_versions(subject)) or [])

    def schema(self, subject: str, version: int) -> tuple[int, str]:
        """Return id and text of a version."""
        what = f"{subject} version {version}"
        found = self._ask(what, lambda: self._client.get_version(subject, version))
        if found.schema_id is None or found.schema is None or found.schema.schema_str is None:
            raise SchemaError(f"registry: {what}: it has no text", remedy="see the registry's log")
        return found.schema_id, found.schema.schema_str

    def text(self, schema_id: int) -> str:
        """Return the text of an id."""
        found = self._ask(f"schema id {schema_id}", lambda: self._client.get_schema(schema_id))
        if found.schema_str is None:
            raise SchemaError(f"registry: schema id {schema_id}: it has no text", remedy="see the registry's log")
        return found.schema_str

    def mode(self) -> str:
        """Return the registry's own mode: READWRITE, READONLY, IMPORT."""
        return str(self._ask("mode", self._client.get_global_mode))

    def compatibility(self, subject: str | None = None) -> str | None:
        """Return a subject's own mode, or the registry's where ``subject`` is None; None where it is not set."""
        what = f"compatibility of {subject}" if subject else "compatibility of all subjects"
        return self._find(what, lambda: self._client.get_compatibility(subject))

    def set_compatibility(self, subject: str, mode: str) -> None:
        """Set a subject's own mode, also before its first version."""
        self._ask(f"compatibility of {subject}", lambda: self._client.set_compatibility(subject, mode))

    def accepts(self, subject: str, text: str, version: int) -> bool:
        """Tell whether the subject's mode allows a text beside one of its versions."""
        schema = Schema(text, "AVRO")
        what = f"compatibility of {subject} with version {version}"
        return self._ask(what, lambda: self._client.test_compatibility(subject, schema, version))

    def register(self, subject: str, text: str) -> int:
        """Register a text, if need be as a new version, and return its id."""
        schema = Schema(text, "AVRO")
        return self._ask(f"register {subject}", lambda: self._client.register_schema(subject, schema))

    def _find(self, what: str, call: Callable[[], T]) -> T | None:
        """Ask, and return None where the registry says that it is not there."""
        try:
            return self._ask(what, call)
        except SchemaError as error:
            cause = error.__cause__
            if isinstance(cause, SchemaRegistryError) and cause.error_code in NOT_FOUND:
                return None
            raise

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except FAILURES as error:
            raise translated(error, what) from error
