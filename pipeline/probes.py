"""The state of one process in, ``/metrics``, ``/healthz`` and ``/readyz`` over HTTP out.

Liveness never depends on Kafka or PostgreSQL: a process that waits for a server is alive, only not ready.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pipeline.errors import ConfigError

__all__ = ["LOOPBACK", "Readiness", "serve"]

LOOPBACK = "127.0.0.1"


class Readiness:
    """What a process says of itself: ready or not, its role, and why not. Thread-safe."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._reasons: dict[str, str] = {"start": "starting"}
        self._notes: dict[str, str] = {}
        self._lock = threading.Lock()

    def ready(self, part: str = "start", *, role: str | None = None) -> None:
        """Say that ``part`` works."""
        with self._lock:
            self._reasons.pop(part, None)
            self.role = role or self.role

    def not_ready(self, part: str, why: str) -> None:
        """Say that ``part`` does not work, and why: no payload, no secret."""
        with self._lock:
            self._reasons[part] = why

    def note(self, part: str, what: str) -> None:
        """Say what is to be known of a part that works; empty: no more."""
        with self._lock:
            if what:
                self._notes[part] = what
            else:
                self._notes.pop(part, None)

    def state(self) -> dict[str, object]:
        """``{"ready": bool, "role": str, "reasons": {part: why}, "notes": {part: what}}``."""
        with self._lock:
            ready, reasons, notes = not self._reasons, dict(self._reasons), dict(self._notes)
            return {"ready": ready, "role": self.role, "reasons": reasons, "notes": notes}


def serve(
    registry: CollectorRegistry,
    state: Callable[[], dict[str, object]],
    port: int,
    host: str = LOOPBACK,
    *,
    timeout_s: float = 5.0,
) -> int:
    """Answer probes and scrapes on ``host:port`` (0: any free port) in a daemon thread; return the port.

    A connection that is silent for ``timeout_s`` is closed: each holds a thread. Raises ConfigError when the port
    cannot be had.
    """

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    class Handler(BaseHTTPRequestHandler):
        timeout = timeout_s

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif path == "/healthz":
                self._answer(200, "application/json", b'{"alive": true}')
            elif path == "/readyz":
                now = state()
                self._answer(200 if now["ready"] else 503, "application/json", json.dumps(now).encode())
            else:
                self._answer(404, "text/plain", b"known: /metrics /healthz /readyz\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the name is http.server's
            """Scrapes are not logged."""

    try:
        server = Server((host, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"metrics port {host}:{port}: {error.strerror}",
            remedy="choose another --metrics-port, 0 for any free one; --metrics-host is an address of this machine",
        ) from error
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()
    return int(server.server_address[1])
