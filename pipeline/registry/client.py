"""Schema ids in, the text of writers' schemas out, from the registry and then from memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from pipeline.errors import SchemaError

__all__ = ["RegistrySchemas"]

_TIMEOUT_S = 5.0
_LATEST_S = 0.5
_AGAIN_S = 0.5  # a refusal is repeated for so long without asking: many records name the same schema


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
        config: dict[str, str | float | int] = {
            "url": url,
            "timeout": _TIMEOUT_S,
            "max.retries": 0,
            "cache.latest.ttl.sec": _LATEST_S,
        }
        if username:
            config["basic.auth.user.info"] = f"{username}:{password or ''}"
        self._url = url
        self._client = SchemaRegistryClient(config)
        self._on_error = on_error
        self._texts: dict[int, str] = {}
        self._refused: dict[int, tuple[float, str, str]] = {}
        self._lock = threading.Lock()

    def text(self, schema_id: int) -> str:
        """Return a schema's text. Raises SchemaError, retryable: the record that names it is sound."""
        found = self._texts.get(schema_id)
        if found is not None:
            return found
        with self._lock:  # one question at a time: while the registry is down, all would ask
            found = self._texts.get(schema_id)
            if found is None:
                found = self._texts[schema_id] = self._ask(schema_id)
            return found

    def latest(self, subject: str) -> tuple[int, str]:
        """Return id and text of a subject's newest version of just now. Raises SchemaError, retryable."""
        remedy = ""
        try:
            found = self._client.get_latest_version(subject)
            if found.schema_id is not None and found.schema is not None and found.schema.schema_str:
                return found.schema_id, found.schema.schema_str
            what = "has no text"
        except SchemaRegistryError as error:
            what = f"{error.error_message} ({error.http_status_code})"
            remedy = "push the schema; the relay waits for it"
        except Exception as error:  # noqa: BLE001 — the HTTP library's errors differ by version
            what, remedy = f"cannot be asked: {type(error).__name__}", "is it up, and PIPELINE_REGISTRY__URL right?"
        self._on_error()
        raise SchemaError(f"registry {self._url}: subject {subject}: {what}", remedy=remedy, retryable=True)

    def close(self) -> None:
        """Close the connections."""
        with self._client:  # its only way
            pass

    def _ask(self, schema_id: int) -> str:
        until, what, remedy = self._refused.get(schema_id, (0.0, "", ""))
        if time.monotonic() >= until:
            try:
                text = self._client.get_schema(schema_id).schema_str
                if text:
                    return text
                what, remedy = "has no text", ""
            except SchemaRegistryError as error:
                what = f"{error.error_message} ({error.http_status_code})"
                remedy = "is it the registry that the writers use, and may this user read it?"
            except Exception as error:  # noqa: BLE001 — the HTTP library's errors differ by version
                what, remedy = f"cannot be asked: {type(error).__name__}", "is it up, and PIPELINE_REGISTRY__URL right?"
            self._refused[schema_id] = (time.monotonic() + _AGAIN_S, what, remedy)
            self._on_error()
        raise SchemaError(f"registry {self._url}: schema id {schema_id}: {what}", remedy=remedy, retryable=True)
