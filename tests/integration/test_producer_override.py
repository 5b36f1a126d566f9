"""``producer.override.*`` as Java has it: the native relay gets in by it on a broker with TLS and passwords."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from certificates import certificates
from own_broker import more_listeners, own_broker
from relays import RelayProcess, connector_file, ids, insert, read_topic, until
from servers import Database, Topics

from pipeline.local import LocalStack
from pipeline.local.kafka import Kafka
from pipeline.local.ports import LOOPBACK

OVERRIDE = "producer.override."
SECRET = "p w;\\"


class Secured(Kafka):
    """The local broker with a listener for user and password, and one for certificates of clients."""

    port_names = (*Kafka.port_names, "sasl", "mtls")

    def _write_settings(self, logs: Path) -> Path:
        path = super()._write_settings(logs)
        text = more_listeners(self, path.read_text(), {"SASL": "SASL_SSL", "MTLS": "SSL"})
        quoted = SECRET.replace("\\", "\\\\\\\\")
        text += f"""\
ssl.keystore.type=PEM
ssl.keystore.location={self.folder}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={self.folder}/ca.pem
listener.name.mtls.ssl.client.auth=required
listener.name.sasl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
  user_ada="{quoted}";
"""
        path.write_text(text)
        return path


@pytest.fixture(scope="module")
def secured(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with own_broker(stack, tmp_path_factory.mktemp("secured"), Secured, certificates) as broker:
        yield broker


def ways(broker: Secured) -> dict[str, dict[str, str]]:
    folder, port = broker.folder, broker.home.port
    trusted = {"ssl.truststore.type": "PEM", "ssl.truststore.location": f"{folder}/ca.pem"}
    escaped = SECRET.replace("\\", "\\\\")
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    sasl = {
        "bootstrap.servers": f"{LOOPBACK}:{port('sasl')}", "security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN",
        "sasl.jaas.config": f'{login} username="ada" password="{escaped}" ;',
    }  # fmt: skip
    mutual = {"bootstrap.servers": f"{LOOPBACK}:{port('mtls')}", "security.protocol": "SSL"}
    return {
        "password": sasl | {"ssl.truststore.certificates": (folder / "ca.pem").read_text()},
        "certificate-pem": mutual | trusted | {
            "ssl.keystore.type": "PEM", "ssl.keystore.location": f"{folder}/client.pem", "ssl.key.password": "k3y",
        },
        "certificate-texts": mutual | trusted | {
            "ssl.keystore.type": "PEM", "ssl.key.password": "k3y", "ssl.endpoint.identification.algorithm": "",
            "ssl.keystore.key": (folder / "client.key").read_text(),
            "ssl.keystore.certificate.chain": (folder / "client.crt").read_text(),
        },
        "certificate-pkcs12": mutual | trusted | {
            "ssl.keystore.type": "PKCS12", "ssl.keystore.location": f"{folder}/client.p12",
            "ssl.keystore.password": "st0re",
        },
    }  # fmt: skip


def test_the_relay_gets_in_by_javas_settings(
    secured: Secured, tmp_path: Path, prefix: str, database: Database, cli_environment: Mapping[str, str]
) -> None:
    topic = f"{prefix}.events"
    topics = Topics(secured.address())
    topics.create(topic)
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        for way, settings in ways(secured).items():
            file = connector_file(
                tmp_path, f"{prefix}-{way}", **{"database.dbname": database.name, "slot.name": f"{prefix}_one"},
                **{OVERRIDE + key: value for key, value in settings.items()},
            )  # fmt: skip
            with RelayProcess(file, cli_environment) as relay:
                relay.reading()
                row = insert(conn, topic, "k")
                until(lambda row=row, relay=relay: row in ids(read_topic(secured.address(), topic)), way)
                assert relay.stop() == 0
