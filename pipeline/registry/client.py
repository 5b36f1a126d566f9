"""Schema ids in, the text of writers' schemas out, from the registry and then from memory."""

from __future__ import annotations

import threading
from collections.abc import Callable

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from pipeline.errors import SchemaError

__all__ = ["RegistrySchemas"]

_TIMEOUT_S = 5.0


class RegistrySchemas:
    """Looks schemas up by id; what an id means never changes. Thread-safe.

    ``on_error`` hears of each call that failed. Close it.
    """

    def __init__(
        self,
        url: str,
        username: str | None = None,
        password: str | None = None,
        *,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        config: dict[str, str | float | int] = {"url": url, "timeout": _TIMEOUT_S, "max.retries": 0}
        if username:
            config["basic.auth.user.info"] = f"{username}:{password or ''}"
        self._url = url
        self._client = SchemaRegistryClient(config)
        self._on_error = on_error
        self._texts: dict[int, str] = {}
        self._lock = threading.Lock()

    def text(self, schema_id: int) -> str:
        """Return a schema's text. Raises SchemaError, retryable: the record that names it is sound."""
        found = self._texts.get(schema_id)
        if found is not None:
            return found
        with self._lock:  # one question at a time: while the registry is down, all would ask
            if schema_id not in self._texts:
                self._texts[schema_id] = self._ask(schema_id)
            return self._texts[schema_id]

    def close(self) -> None:
        """Close the connections."""
        with self._client:  # its only way
            pass

    def _ask(self, schema_id: int) -> str:
        try:
            text = self._client.get_schema(schema_id).schema_str
        except SchemaRegistryError as error:
            self._on_error()
            raise SchemaError(
                f"registry {self._url}: schema id {schema_id}: {error.error_message} ({error.http_status_code})",
                remedy="is it the registry that the writers use, and may this user read it?",
                retryable=True,
            ) from error
        except Exception as error:  # the HTTP library's errors differ by version
            self._on_error()
            raise SchemaError(
                f"registry {self._url} cannot be asked: {type(error).__name__}",
                remedy="is it up, and PIPELINE_REGISTRY__URL right?",
                retryable=True,
            ) from error
        if not text:
            raise SchemaError(f"registry {self._url}: schema id {schema_id} has no text", retryable=True)
        return text
