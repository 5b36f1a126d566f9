"""Kafka Connect's REST API: connectors in, their states out.

A rebalance (409, for some requests 500) is waited for, as it passes, and a 500 is asked again: every request here may
be repeated. Every other refusal is a ConnectError that says what was asked, what was answered, and what to do.
"""

from __future__ import annotations

import json
import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import urllib3

from pipeline.connect.known import unknown
from pipeline.connector import Check, Connector, State, TaskState
from pipeline.errors import ConfigError, ConnectError

__all__ = ["Connect"]

_TIMEOUT = urllib3.Timeout(connect=5, read=60)
_REBALANCE_S = 60.0
_PASSES = ("rebalance", "stale configuration")  # Connect says so while its workers agree on something
_FAILURES = 3  # how often a 500 is asked again: it can be one worker's, or a timeout's
_PAUSE_S = 0.5
_TEXT_CHARS = 300

Json = Any  # a decoded answer: its shape is Connect's


class Connect:
    """One Connect cluster, by the URL of any of its workers, with sign-in as in ``http://user:password@host:8083``.

    What has a meaning of its own in a URL stands percent-encoded in user and password.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError("PIPELINE_CONNECT__URL is no URL", remedy="http://HOST:8083")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"
        headers = {"accept": "application/json", "content-type": "application/json"}
        if parts.username:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["authorization"] = f"Basic {b64encode(user.encode()).decode()}"
        self._pool = urllib3.PoolManager(headers=headers, timeout=_TIMEOUT, retries=False)
        self._clock = clock
        self._pause = pause

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def plugins(self) -> dict[str, str]:
        """Return the connector classes there are, each with its version."""
        return {one["class"]: str(one.get("version", "")) for one in self._ask("GET", "/connector-plugins")}

    def names(self) -> list[str]:
        """Return the names of all connectors."""
        return sorted(map(str, self._ask("GET", "/connectors")))

    def configs(self) -> dict[str, dict[str, str]]:
        """Return the configurations of all connectors, by name."""
        return {name: one["info"]["config"] for name, one in self._ask("GET", "/connectors?expand=info").items()}

    def config(self, name: str) -> dict[str, str] | None:
        """Return a connector's configuration, references as they were written; None where there is none."""
        found = self._ask("GET", f"{_path(name)}/config", missing=None)
        return None if found is None else {str(key): str(value) for key, value in found.items()}

    def state(self, name: str) -> State | None:
        """Return what a connector does; None where there is none, or not yet."""
        found = self._ask("GET", f"{_path(name)}/status", missing=None)
        if found is None:
            return None
        connector = found["connector"]
        tasks = (
            TaskState(int(one["id"]), one["state"], str(one.get("worker_id", "")), str(one.get("trace") or ""))
            for one in found["tasks"]
        )
        return State(
            name,
            connector["state"],
            str(connector.get("worker_id", "")),
            str(found.get("type", "")),
            tuple(sorted(tasks, key=lambda task: task.number)),
            str(connector.get("trace") or ""),
        )

    def task_configs(self, name: str) -> list[dict[str, str]]:
        """Return what each task was started with."""
        return [one["config"] for one in self._ask("GET", f"{_path(name)}/tasks", missing=[])]

    def check(self, connector: Connector) -> Check:
        """Let Connect and its plugins check a configuration. Starts nothing."""
        kind = connector.config.get("connector.class", "")
        if not kind:
            return Check({"connector.class": ["is missing"]})
        known = self.plugins()
        if kind not in known and kind not in {name.rpartition(".")[2] for name in known}:
            names = ", ".join(sorted(known))
            return Check({"connector.class": [f"{kind} is not installed on this Connect; it has: {names}"]})
        body = {**connector.config, "name": connector.name}
        found = self._ask("PUT", f"/connector-plugins/{quote(kind, safe='')}/config/validate", body)
        values = [one["value"] for one in found["configs"]]
        types = {str(one["definition"]["name"]): one["definition"]["type"] for one in found["configs"]}
        return Check(
            {str(value["name"]): list(map(str, value["errors"])) for value in values if value.get("errors")},
            frozenset(name for name, kind in types.items() if kind == "PASSWORD"),
            unknown(connector.config, types) if "debezium" in kind.lower() else {},
        )

    def put(self, connector: Connector) -> None:
        """Create a connector, or replace its configuration."""
        self._ask("PUT", f"{_path(connector.name)}/config", {**connector.config, "name": connector.name})

    def delete(self, name: str) -> None:
        """Delete a connector; it is gone a moment later. Its offsets stay."""
        self._ask("DELETE", _path(name), missing=None)

    def pause(self, name: str) -> None:
        """Let it do nothing and keep what it holds."""
        self._ask("PUT", f"{_path(name)}/pause")

    def resume(self, name: str) -> None:
        """Let it go on."""
        self._ask("PUT", f"{_path(name)}/resume")

    def stop(self, name: str) -> None:
        """End its tasks; its configuration and offsets stay."""
        self._ask("PUT", f"{_path(name)}/stop")

    def restart(self, name: str, *, only_failed: bool) -> None:
        """Start it and its tasks again, or those of them that failed."""
        self._ask("POST", f"{_path(name)}/restart?includeTasks=true&onlyFailed={str(only_failed).lower()}")

    def offsets(self, name: str) -> Json:
        """Return its offsets: a list of ``{"partition": …, "offset": …}``."""
        return self._ask("GET", f"{_path(name)}/offsets")["offsets"]

    def set_offsets(self, name: str, offsets: Json) -> str:
        """Replace offsets of a stopped connector; return what Connect says."""
        return str(self._ask("PATCH", f"{_path(name)}/offsets", {"offsets": offsets})["message"])

    def reset_offsets(self, name: str) -> str:
        """Forget all offsets of a stopped connector; return what Connect says."""
        return str(self._ask("DELETE", f"{_path(name)}/offsets")["message"])

    def _ask(self, method: str, path: str, body: Json = None, *, missing: Json = ...) -> Json:
        """Ask, again while the cluster rebalances. ``missing`` is returned where there is no such connector."""
        until, failures = self._clock() + _REBALANCE_S, 0
        while True:
            answer = self._request(method, path, body)
            text = answer.data.decode(errors="replace")
            if answer.status == 404 and missing is not ...:
                return missing
            passes = any(word in text.lower() for word in _PASSES) and self._clock() < until
            failures += answer.status == 500
            if (answer.status in {409, 500} and passes) or (answer.status == 500 and failures < _FAILURES):
                self._pause(_PAUSE_S)
                continue
            if 200 <= answer.status < 300 and not text.strip():
                return None
            try:
                found = json.loads(text)
            except ValueError:
                raise self._not_connect(method, path, answer.status, text) from None
            if 200 <= answer.status < 300:
                return found
            raise self._refused(method, path, answer.status, found)

    def _request(self, method: str, path: str, body: Json) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(method, self.url + path, body=None if body is None else json.dumps(body).encode())
        except urllib3.exceptions.HTTPError as error:
            raise ConnectError(
                f"Kafka Connect at {self.url}: {method} {path}: {_reason(error)}",
                remedy="is it up, and PIPELINE_CONNECT__URL right?",
                retryable=True,
            ) from error

    def _not_connect(self, method: str, path: str, status: int, text: str) -> ConnectError:
        """Something answers that is not Connect: a proxy's page, for instance."""
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        shown = title[1] if title else re.sub(r"<[^>]+>", " ", text)
        return ConnectError(
            f"Kafka Connect at {self.url}: {method} {path}: answered {status} without JSON: "
            f"{' '.join(shown.split())[:_TEXT_CHARS] or 'nothing'}",
            remedy="does PIPELINE_CONNECT__URL name Connect itself, and not a proxy or another service?",
            retryable=status >= 500,
        )

    def _refused(self, method: str, path: str, status: int, found: Json) -> ConnectError:
        message = str(found.get("message", found)) if isinstance(found, Mapping) else str(found)
        remedies = {
            401: "sign in: PIPELINE_CONNECT__URL=http://USER:PASSWORD@HOST:8083",
            403: "this user may not do that on Connect",
            404: "pipeline connector list shows what there is",
            409: "Connect was rebalancing, or the connector is being changed by somebody else: ask again",
            500: "Connect's own log says more",
        }
        return ConnectError(
            f"Kafka Connect at {self.url}: {method} {path}: {' '.join(message.split())[: _TEXT_CHARS * 3]} ({status})",
            remedy=remedies.get(status, ""),
            retryable=status in {409, 500, 502, 503, 504},
        )


def _path(name: str) -> str:
    return f"/connectors/{quote(name, safe='')}"


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    """Say what happened without the pool's own name and address."""
    text = str(getattr(error, "reason", None) or error)
    return re.sub(r"<[^>]*>:? ?|^\S*Connection\S*\(.*?\): ", "", text).strip() or type(error).__name__
