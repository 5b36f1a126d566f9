from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.config import ConnectSettings, RegistrySettings, Settings
from pipeline.connect.rest import Connect
from pipeline.connector import differences, is_reference, is_secret
from pipeline.endpoints import connect_url, registry_address
from pipeline.errors import ConfigError

JAAS = "org.apache.kafka.common.security.scram.ScramLoginModule required"


@contextmanager
def asked() -> Iterator[tuple[int, list[str | None]]]:
    """An empty Connect: its port, and the Authorization headers of what it is asked."""
    headers: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers.append(self.headers["authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], headers
        server.shutdown()


@pytest.mark.parametrize(
    "key",
    [
        "database.password",
        "producer.override.sasl.jaas.config",
        "value.converter.basic.auth.user.info",
        "value.converter.schema.registry.basic.auth.user.info",
        "producer.override.ssl.keystore.key",
        "sasl.oauthbearer.assertion.private.key.passphrase",
    ],
)
def test_keys_of_secrets_are_known_by_their_names(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key", ["key.converter", "message.key.columns", "basic.auth.credentials.source", "ssl.keystore.location", "keys"]
)
def test_other_keys_hold_none(key: str) -> None:
    assert not is_secret(key)


@pytest.mark.parametrize(
    ("value", "by_reference"),
    [
        ("${env:PGPASSWORD}", True),
        ("${file:/run/secrets:kafka.password}", True),
        (f'{JAAS} username="${{env:USER}}" password="${{env:PASSWORD}}";', True),
        (f'{JAAS} username="${{env:USER}}" password="hunter2";', False),
        (f"{JAAS} username=${{env:USER}} password=hunter2;", False),
        ("hunter2", False),
        ("", False),
    ],
)
def test_a_secret_beside_a_reference_is_still_one(value: str, by_reference: bool) -> None:
    assert is_reference(value) is by_reference
    key = "producer.override.sasl.jaas.config"
    (found,) = differences({}, {key: value}) or [None]
    assert found is not None
    assert ("hunter2" in str(found)) is False


def test_user_and_password_of_connects_url_are_percent_encoded_and_do_not_print() -> None:
    settings = Settings(connect=ConnectSettings(url="http://ann:p%40ss%E2%82%AC@connect:8083"))
    assert "ss%E2" not in repr(settings)
    with asked() as (port, headers):
        connect = Connect((connect_url(settings) or "").replace("connect:8083", f"127.0.0.1:{port}"))
        assert connect.url == f"http://127.0.0.1:{port}"
        assert connect.names() == []
    assert headers == [f"Basic {b64encode('ann:p@ss€'.encode()).decode()}"]


def test_user_and_password_of_the_registrys_url_are_no_part_of_what_is_printed() -> None:
    url = "https://ann:p%40ss@[::1]:8081/apis/ccompat/v7"
    address = registry_address(Settings(registry=RegistrySettings(url=url)))
    assert (address.url, address.username, address.password) == ("https://[::1]:8081/apis/ccompat/v7", "ann", "p@ss")
    assert "p@ss" not in repr(address)
    given = RegistrySettings(url="https://ann:old@registry", username="bob", password="new")
    assert registry_address(Settings(registry=given)).password == "new"
    with pytest.raises(ConfigError, match="is no URL") as refused:
        registry_address(Settings(registry=RegistrySettings(url="https://ann:geheim@[::1")))
    assert "geheim" not in str(refused.value)
