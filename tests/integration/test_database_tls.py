"""``database.ssl*`` of a connector file: relay and doctor get in where TLS and a client's certificate are needed.

The PostgreSQL of these tests is built without TLS: what speaks it is a proxy before it, as a cloud's may be.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import psycopg
import pytest
from certificates import certificates
from commands import CommandLine
from psycopg.conninfo import conninfo_to_dict
from relays import RelayProcess, connector_file, ids, insert, read_topic, until
from servers import Database, Topics

from pipeline.local.ports import LOOPBACK

SSL_REQUEST = 80877103  # the code of the first message of a client that wants TLS


class Proxy(ThreadingTCPServer):
    """Takes connections with TLS and a certificate that the CA of ``folder`` signed, and hands them on in plain."""

    daemon_threads = True

    def __init__(self, folder: Path, server: tuple[str, int]) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.load_cert_chain(folder / "broker.pem")
        self.server = server
        super().__init__((LOOPBACK, 0), Connection)


class Connection(BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        while (code := int.from_bytes(self.request.recv(8, socket.MSG_WAITALL)[4:])) != SSL_REQUEST:
            if code == 0 or code >> 16 != SSL_REQUEST >> 16:
                return  # without TLS: nobody is let in
            self.request.sendall(b"N")  # GSSAPI
        self.request.sendall(b"S")
        with (
            suppress(OSError),
            closing(self.server.context.wrap_socket(self.request, server_side=True)) as client,
            closing(socket.create_connection(self.server.server)) as behind,
        ):
            back = threading.Thread(target=pump, args=(behind, client))
            back.start()
            pump(client, behind)
            back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes until one end closes; then close both ways of the other."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def encrypted(tmp_path: Path, database: Database) -> Iterator[dict[str, str | None]]:
    """What a connector file says to get in by TLS; the files are in ``tls`` of the test's folder."""
    folder = tmp_path / "tls"
    folder.mkdir()
    certificates(folder)
    behind = conninfo_to_dict(database.dsn)
    with Proxy(folder, (str(behind["host"]), int(behind["port"] or 5432))) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield {
            "database.hostname": LOOPBACK, "database.port": str(proxy.server_address[1]),
            "database.user": str(behind["user"]), "database.password": str(behind["password"]),
            "database.dbname": database.name, "database.sslmode": "verify-full",
            "database.sslrootcert": f"{folder}/ca.pem", "database.sslcert": f"{folder}/client.crt",
            "database.sslkey": f"{folder}/client.key", "database.sslpassword": "k3y",
        }  # fmt: skip
        proxy.shutdown()


def test_the_relay_and_the_doctor_get_in_by_a_certificate_and_by_no_less(
    encrypted: dict[str, str | None], tmp_path: Path, prefix: str, database: Database, topics: Topics,
    bootstrap_servers: str, pipeline: CommandLine, cli_environment: Mapping[str, str],
) -> None:  # fmt: skip
    topic, folder = f"{prefix}.events", tmp_path / "tls"
    topics.create(topic)
    file = connector_file(tmp_path, prefix, **encrypted)
    with psycopg.connect(database.dsn, autocommit=True) as conn, RelayProcess(file, cli_environment) as relay:
        relay.reading()
        row = insert(conn, topic, "k")
        until(lambda: row in ids(read_topic(bootstrap_servers, topic)), "the row")
        assert relay.stop() == 0

    def told(**changes: str | None) -> str:
        asked = connector_file(tmp_path, f"{prefix}-asked", **{**encrypted, "slot.name": prefix, **changes})
        found = json.loads(pipeline("doctor", str(asked), "-o", "json").stdout)
        return "\n".join(one["found"] for one in found if one["area"] == "postgres" and one["level"] == "problem")

    assert told() == ""
    for changes, said in (
        ({"database.hostname": "localhost"}, 'does not match host name "localhost"'),
        ({"database.sslrootcert": f"{folder}/client.crt"}, "certificate verify failed"),
        ({"database.sslpassword": "wrong"}, "client.key"),
        ({"database.sslcert": None, "database.sslkey": None}, "certificate required"),
        ({"database.sslmode": "disable"}, "closed the connection"),
    ):
        assert said in told(**changes), changes
