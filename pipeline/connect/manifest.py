"""A connector in, what other ways of running Kafka Connect take out: Strimzi's KafkaConnector, or plain JSON.

What Kubernetes or Strimzi would refuse, or pass over, is refused here, with the file and the key.
"""

from __future__ import annotations

import re

from pipeline.connector import Connector
from pipeline.errors import ConfigError

__all__ = ["APIS", "kafka_connector", "plain"]

APIS = ("v1", "v1beta2")  # v1: Strimzi 0.49 and newer; v1beta2: up to 0.51, 1.0 has it no more

_VERSION = "connector.plugin.version"
_OWN = ("connector.class", "tasks.max", "name")  # have places of their own in the manifest, as _VERSION in v1
_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")  # RFC 1123
_NAME_CHARS = 253
_NAMESPACE = re.compile(_LABEL)
_SHORT_CHARS = 63  # of a namespace, and of a label's value
_SECRET_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")
_ENVIRONMENT = re.compile(r"\$\{env:([^{}]+)\}")


def plain(connector: Connector) -> dict[str, object]:
    """Return the JSON that Connect's own API, and managed Connect, take."""
    return {"name": connector.name, "config": {key: value for key, value in connector.config.items() if key != "name"}}


def kafka_connector(connector: Connector, *, cluster: str, secret: str = "", api: str = APIS[0]) -> dict[str, object]:
    """Return Strimzi's manifest for the KafkaConnect ``cluster``, in the form of ``api``, one of APIS.

    ``${env:NAME}`` becomes ``${secrets:SECRET:NAME}`` where ``secret`` (NAMESPACE/NAME) is given, for Strimzi's
    KubernetesSecretConfigProvider. Raises ConfigError for names that Kubernetes does not take: Strimzi gives the
    connector the name of its manifest, so that another one would lose its offsets.
    """
    where = connector.source or connector.name
    if not _fits(connector.name, _NAME, _NAME_CHARS):
        near = _near(connector.name)
        raise ConfigError(
            f"{where}: {connector.name!r} is no name for Kubernetes",
            remedy=f"rename the file{f', to {near}.json say' if near else ''}: a-z, 0-9, - and ., "
            f"at most {_NAME_CHARS} characters, first and last a letter or a digit",
        )
    if not _fits(cluster, _NAME, _SHORT_CHARS):
        raise ConfigError(
            f"--cluster {cluster}: is no name of a KafkaConnect", remedy="see: kubectl get kafkaconnect"
        )  # fmt: skip
    tasks = connector.config.get("tasks.max", "1")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", tasks):
        raise ConfigError(f"{where}: tasks.max: {tasks!r} is not a number of tasks", remedy="write it as 1")
    if not (name_of_class := connector.config.get("connector.class", "").strip()):
        raise ConfigError(f"{where}: connector.class: is missing", remedy="name the connector's class")
    config = {key: value for key, value in connector.config.items() if key not in _OWN}
    spec: dict[str, object] = {"class": name_of_class, "tasksMax": int(tasks)}
    if api == APIS[0] and _VERSION in config:
        spec["version"] = config.pop(_VERSION)
    if secret:
        config = {key: _from_secret(secret, where, key, value) for key, value in config.items()}
    return {
        "apiVersion": f"kafka.strimzi.io/{api}",
        "kind": "KafkaConnector",
        "metadata": {"name": connector.name, "labels": {"strimzi.io/cluster": cluster}},
        "spec": {**spec, "config": config},
    }


def _from_secret(secret: str, where: str, key: str, value: str) -> str:
    """Let a value refer to the keys of a Secret in place of the environment."""
    namespace, _, name = secret.partition("/")
    if not (_fits(namespace, _NAMESPACE, _SHORT_CHARS) and _fits(name, _NAME, _NAME_CHARS)):
        raise ConfigError(f"--secret {secret}: names no Secret", remedy="write it as NAMESPACE/NAME: shop/postgres")

    def reference(found: re.Match[str]) -> str:
        if not _SECRET_KEY.fullmatch(found[1]):
            raise ConfigError(
                f"{where}: {key}: no Secret can have a key {found[1]!r}",
                remedy="name the variable with letters, digits, _, - and .",
            )
        return f"${{secrets:{secret}:{found[1]}}}"

    return _ENVIRONMENT.sub(reference, value)


def _fits(text: str, pattern: re.Pattern[str], most: int) -> bool:
    return len(text) <= most and pattern.fullmatch(text) is not None


def _near(name: str) -> str:
    """Return a name that Kubernetes takes, as like as can be; "" where there is none."""
    near = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return near if _fits(near, _NAME, _NAME_CHARS) else ""
